"""Help teaches, fits the terminal and comes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

from libmoe.cli.app import app

Libmoe = Callable[..., Any]
COMMANDS = sorted(typer.main.get_group(app).commands)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # Typer reads TERMINAL_WIDTH once, when it first draws help: maybe in a test that wanted another width.
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)


def test_all_commands_are_listed(libmoe: Libmoe) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        outcome = libmoe(*arguments)
        assert outcome.code == 0 and outcome.err == ""
        for command in COMMANDS:
            assert f" {command} " in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_an_example(command: str, libmoe: Libmoe) -> None:
    outcome = libmoe(command, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert "Example:" in outcome.out and f"libmoe {command}" in outcome.out.partition("Example:")[2]
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_the_version(libmoe: Libmoe) -> None:
    import libmoe as package

    assert libmoe("--version").out.strip() == package.__version__


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["papers"], ["--version"], ["trian"]])
def test_light_commands_do_not_load_torch(arguments: list[str]) -> None:
    script = f"""
import sys
sys.argv = ["libmoe", *{arguments!r}]
from libmoe.cli import main
try:
    main()
except SystemExit:
    heavy = [name for name in ("torch", "transformers", "numpy", "lm_eval") if name in sys.modules]
    assert not heavy, heavy
    print("light")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("light\n"), done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        f"{sys.executable} -m libmoe papers --json | head -c 10",
        shell=True,
        capture_output=True,
        env=environment,
    )
    assert len(done.stdout) == 10 and done.stderr == b""
