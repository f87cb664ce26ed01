"""The command line inside the test process, and a run that has been trained once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SHORT = ["--set", "train.steps=3", "--set", "train.warmup_steps=1", "--set", "train.save_every=2"]


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line that a failed command prints; fails if there is more or less."""
        assert self.code != 0
        (line,) = self.err.splitlines()
        assert line.startswith("error: ") and len(line) < 600
        return line


@pytest.fixture
def libmoe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """``libmoe("train", "tiny", ...)`` does what typing it does, without starting a process."""

    monkeypatch.setenv("LIBMOE_RESULTS", str(tmp_path_factory.mktemp("results") / "results.db"))

    def run(*arguments: object) -> Outcome:
        from libmoe.cli import main

        monkeypatch.setattr(sys, "argv", ["libmoe", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from libmoe.train import load_recipe, train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(load_recipe("tiny", SHORT[1::2]), folder, quiet=True)
    return folder


@pytest.fixture
def run_dir(_trained: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, three steps long."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str, str], Path]:
    """``plugin(name, body)``: a file that registers ``name``, a top-k router with ``body`` inside its class."""

    def write(name: str, body: str) -> Path:
        inner = body.replace("\n", "\n    ")
        file = tmp_path / f"{name.replace('-', '_')}.py"
        file.write_text(
            f'''import torch
from dataclasses import dataclass
import libmoe
from libmoe.routers import TopKRouter


class MyRouter(TopKRouter):
    {inner}


@libmoe.register_method("{name}", summary="of a test")
@dataclass(kw_only=True)
class MyMethod(libmoe.Method):
    """A method of a test."""

    def build_router(self, site):
        return MyRouter(site.dim, self.num_experts, self.top_k)
'''
        )
        return file

    return write


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its plugins registered."""
    from libmoe.methods import METHODS

    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "_aliases", dict(METHODS._aliases))
