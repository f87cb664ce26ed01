"""A grid that trains in moments, and routers that misbehave in every way a router can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from libmoe.bench import Grid, load_grid
from libmoe.core.plugins import load_plugin
from libmoe.methods import METHODS

RECIPE: dict[str, Any] = {
    "backbone": {
        "architecture": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    "data": {"seq_len": 32, "domains": ["novel", "math"]},
    "train": {
        "steps": 6, "batch_size": 2, "lr": 3e-3, "warmup_steps": 1, "log_every": 1, "eval_every": 3,
        "save_every": 2, "keep_checkpoints": 1,
    },
    "eval": {"windows_per_domain": 1, "tasks": ["moe_cloze"], "task_limit": 4},
}  # fmt: skip

MISFITS = '''"""Routers that fail."""
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import libmoe
from libmoe.methods.smoe import SMoE
from libmoe.routers import TopKRouter


def method(name, misbehave):
    class Misfit(TopKRouter):
        def score(self, logits_TN):
            if self.training:
                misbehave()
            return super().score(logits_TN)

    @libmoe.register_method(name, summary="of a test")
    @dataclass(kw_only=True)
    class Method(SMoE):
        """smoe, but for what its router does besides."""

        def build_router(self, site):
            return Misfit(site.dim, self.num_experts, self.top_k)


CALLS = [0]


def die():
    """Killed in the second step, as by the kernel when memory runs out."""
    CALLS[0] += 1
    if CALLS[0] > 3:
        os.kill(os.getpid(), signal.SIGKILL)


def die_once():
    marker = Path(__file__).with_suffix(".died")
    CALLS[0] += 1
    if CALLS[0] > 7 and not marker.exists():  # in the fourth step: there is a checkpoint of the second
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("this router\\ndoes not work")


method("raises", fail)
method("fragile", die_once)
method("doomed", die)
method("slow", lambda: time.sleep(0.3))
'''


@pytest.fixture(scope="module")
def misfits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("plugins") / "misfits.py"
    file.write_text(MISFITS)
    before = dict(METHODS._entries)
    load_plugin(file)
    yield file
    METHODS._entries = before


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its own plugins registered."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """``grid_file("dense", "smoe", seeds=[0, 1])``: a file with a grid of these methods."""

    def write(*methods: str, **more: Any) -> Path:
        options = {"num_experts": 4, "top_k": 2}
        entries = [{"method": m} | ({} if m == "dense" else {"options": options}) for m in methods]
        grid = {"name": "mini", "seeds": [0], "workers": 2, "entries": entries, "recipe": RECIPE}
        file = tmp_path / "mini.yaml"
        file.write_text(yaml.safe_dump(grid | more))
        return file

    return write


@pytest.fixture
def mini(grid_file: Callable[..., Path]) -> Callable[..., Grid]:
    """The grid itself, as it is read from that file."""
    return lambda *methods, **more: load_grid(grid_file(*methods, **more))
