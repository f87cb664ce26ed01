"""Where `libmoe eval` records what it found, and where `libmoe results` looks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Libmoe = Callable[..., Any]
SHORT = ("--task", "moe_cloze", "--limit", 2, "--windows", 1, "-q")


def test_an_evaluation_goes_into_the_store_that_is_named_or_into_none(
    libmoe: Libmoe, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, mine = tmp_path / "usual.db", tmp_path / "mine.db"
    monkeypatch.setenv("LIBMOE_RESULTS", str(usual))
    assert libmoe("eval", run_dir, *SHORT, "--no-store").code == 0
    assert not usual.exists()
    assert libmoe("eval", run_dir, *SHORT, "--store", mine).code == 0
    assert not usual.exists()
    assert libmoe("eval", run_dir, *SHORT).code == 0
    tasks = [
        [row["task"] for row in json.loads(libmoe("results", "--json", *where).out)]
        for where in ([], ["--store", mine])
    ]
    assert tasks == [["moe_cloze"], ["moe_cloze"]]


def test_a_store_that_nothing_would_be_recorded_in_is_refused(libmoe: Libmoe, run_dir: Path) -> None:
    line = libmoe("eval", run_dir, *SHORT, "--store", "mine.db", "--no-store").error()
    assert "--store mine.db and --no-store exclude each other" in line
    assert "--store" in libmoe("eval", run_dir, "--checkpoints", "--store", "mine.db").error()
