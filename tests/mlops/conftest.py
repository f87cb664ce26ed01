"""A run that has been trained and evaluated once, and folders that look like one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.core.files import write_json
from libmoe.mlops import Registry

SHORT = [
    "train.steps=3", "train.warmup_steps=1", "train.log_every=1", "data.seq_len=16", "eval.windows_per_domain=8",
]  # fmt: skip
WORDS = (
    "the router sends each token to two experts while others rest and nobody knows which will learn".split()
)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from libmoe.eval import evaluate_run
    from libmoe.train import load_recipe, train

    place, order = tmp_path_factory.mktemp("trained"), random.Random(0)
    for domain in ("prose", "verse"):
        (place / "corpus" / domain).mkdir(parents=True)
        for i in range(120):
            text = " ".join(order.choice(WORDS) for _ in range(order.randint(20, 40)))
            (place / "corpus" / domain / f"{i}.txt").write_text(text)
    train(load_recipe("tiny", [*SHORT, f"data.source={place / 'corpus'}"]), place / "run", quiet=True)
    evaluate_run(place / "run")
    return place / "run"


@pytest.fixture
def run(_trained: Path, tmp_path: Path) -> Path:
    """A run of one's own: three steps, evaluated."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


@pytest.fixture
def variant(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """``variant("b", 0.1)``: the run with other weights, which need 0.1 bits per byte more, give or take ``noise``."""

    def make(name: str, more: float, noise: float = 0.01) -> Path:
        folder = Path(shutil.copytree(run, tmp_path / name))
        _other_weights(folder / "model" / "model.safetensors", name)
        found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        place = 0
        for rows in found["windows"].values():
            for row in rows:
                place += 1
                row[0] += (more + noise * (-1) ** place) * row[1]
        bits, size = (sum(row[i] for rows in found["windows"].values() for row in rows) for i in (0, 1))
        write_json(folder / "eval.json", found | {"bits_per_byte": bits / size})
        return folder

    return make


def _other_weights(file: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    first = next(iter(tensors))
    tensors[first] = tensors[first] + len(name) + sum(map(ord, name))
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")
