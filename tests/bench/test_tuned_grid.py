"""A comparison that tunes its entries first trains the cells with what was chosen, and tells what that cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_executor import FakeExecutor
from libmoe.bench import Grid, run_grid

TUNING = {"knobs": {"train.lr": [0.001, 0.002, 0.004]}, "share": 0.5}


def score(key: str, seed: int) -> float:
    return 1.9 if "lr=0.002" in key else 2.0


@pytest.fixture
def grid(mini: Callable[..., Grid]) -> Callable[[], Grid]:
    return lambda: mini("dense", "smoe", match="none", tuning=TUNING)


def run(grid: Grid, out: Path, executor: FakeExecutor) -> list[Any]:
    return run_grid(grid, out, executor=executor, say=lambda line: None, live=False)


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_cells_are_trained_with_what_was_chosen(grid: Callable[[], Grid], tmp_path: Path) -> None:
    executor = FakeExecutor(score)
    assert run(grid(), tmp_path, executor) == []
    assert len(executor.ran) == 2 * 3 + 2 and executor.ran[-2:] == ["dense-s0", "smoe-s0"]
    found = told(tmp_path)
    assert (
        found["protocol"]["tuning"]["knobs"] == TUNING["knobs"] and found["protocol"]["tuning"]["trials"] == 3
    )
    for row in found["rows"]:
        spent = {key: row["tuning"][key] for key in ("chosen", "trials", "train_flops", "train_seconds")}
        assert spent == {"chosen": {"train.lr": 0.002}, "trials": 3, "train_flops": 6.0, "train_seconds": 3.0}
        recipe = yaml.safe_load((tmp_path / f"{row['method']}-s0" / "recipe.yaml").read_text())
        assert recipe["train"]["lr"] == 0.002 and row["steps"] == recipe["train"]["steps"] == 6
    again = FakeExecutor(score)
    run(grid(), tmp_path, again)
    assert again.ran == [] and told(tmp_path)["rows"] == found["rows"]


def test_an_entry_whose_trials_all_fail_has_failed_rows_and_the_others_go_on(
    grid: Callable[[], Grid], tmp_path: Path
) -> None:
    run(
        grid(),
        tmp_path,
        FakeExecutor(lambda key, seed: None if key.startswith("smoe ") else score(key, seed)),
    )
    dense, smoe = told(tmp_path)["rows"]
    assert dense["status"] == "ok" and smoe["status"] == "failed"
    assert smoe["error"] == "tuning: every trial of 'smoe' failed; the first says: planted failure"
    assert not (tmp_path / "smoe-s0").exists()


@pytest.mark.parametrize("cells", [0, 4, 7])
def test_interrupted_anywhere_it_ends_the_same(cells: int, grid: Callable[[], Grid], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(grid(), tmp_path / "a", FakeExecutor(score, stop_after=cells))
    second = FakeExecutor(score)
    run(grid(), tmp_path / "a", second)
    assert len(second.ran) == 8 - cells
    run(grid(), tmp_path / "b", FakeExecutor(score))
    assert told(tmp_path / "a")["rows"] == told(tmp_path / "b")["rows"]


def test_trials_of_another_system_come_before_the_cells(grid: Callable[[], Grid], tmp_path: Path) -> None:
    handed = []
    while left := run(grid(), tmp_path, executor := FakeExecutor(score, hands_over=True)):
        executor.work(left)
        handed.append(len(left))
    assert handed == [6, 2] and [row["status"] for row in told(tmp_path)["rows"]] == ["ok", "ok"]
