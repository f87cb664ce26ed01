"""Cells are run once, those that are done are kept, and what is said of it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_executor import FakeExecutor
from libmoe.bench import Grid
from libmoe.bench.cell import CellSpec
from libmoe.bench.run import run_specs
from libmoe.core.errors import ConfigError


@pytest.fixture
def specs(mini: Callable[..., Grid], tmp_path: Path) -> list[CellSpec]:
    grid = mini("dense", "smoe", "hash")
    return [
        CellSpec(e.key, e.label, grid.cell_recipe(e, 0, e.options), str(tmp_path / f"{e.key}-s0"))
        for e in grid.entries
    ]


def run(
    specs: list[CellSpec], executor: FakeExecutor, **more: Any
) -> tuple[dict[str, Any], list[list[str]], list[str]]:
    heard: list[list[str]] = []
    said: list[str] = []
    rows = run_specs(
        specs,
        Path(specs[0].run_dir).parent,
        executor,
        heard=lambda rows: heard.append([row["method"] for row in rows]),
        say=said.append,
        live=False,
        **more,
    )
    return {Path(run_dir).name: row for run_dir, row in rows.items()}, heard, said


def fails(key: str, seed: int) -> float | None:
    return None if key == "smoe" else 2.0


def test_done_cells_are_heard_of_together_and_the_others_run(specs: list[CellSpec]) -> None:
    rows, heard, said = run(specs[:2], FakeExecutor(lambda key, seed: 2.0))
    assert heard == [["dense"], ["smoe"]] and set(rows) == {"dense-s0", "smoe-s0"}
    assert not any("done already" in line for line in said)
    executor = FakeExecutor(lambda key, seed: 2.0)
    rows, heard, said = run(specs, executor)
    assert executor.ran == ["hash-s0"] and heard == [["dense", "smoe"], ["hash"]]
    assert said[0] == "2 of 3 cells are done already and are kept." and len(rows) == 3


def test_with_nothing_to_do_nobody_is_asked(specs: list[CellSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    run(specs, FakeExecutor(lambda key, seed: 2.0))
    executor = FakeExecutor(lambda key, seed: 2.0)
    monkeypatch.setattr(executor, "run", lambda *arguments, **more: pytest.fail("asked"))
    rows, heard, said = run(specs, executor)
    assert said == ["All 3 cells are done already; there is nothing to run."]
    assert len(rows) == 3 and heard == [["dense", "smoe", "hash"]]


def test_failed_cells_are_tried_again_by_the_next_command(specs: list[CellSpec]) -> None:
    rows, _, said = run(specs, FakeExecutor(fails))
    assert rows["smoe-s0"]["status"] == "failed"
    assert sum("smoe seed 0: failed: planted failure" in line for line in said) == 1
    executor = FakeExecutor(lambda key, seed: 2.0)
    assert run(specs, executor)[0]["smoe-s0"]["status"] == "ok" and executor.ran == ["smoe-s0"]


def test_cells_that_are_handed_over_have_no_row_and_earlier_failures_are_told(specs: list[CellSpec]) -> None:
    run(specs[:2], FakeExecutor(fails))
    executor = FakeExecutor(fails, hands_over=True)
    rows, heard, _ = run(specs, executor)
    assert set(rows) == {"dense-s0"} and [spec.key for spec in executor.kept] == ["smoe", "hash"]
    assert heard == [["dense"], ["smoe"]]


def test_rows_that_are_known_to_be_over_are_taken(specs: list[CellSpec]) -> None:
    executor = FakeExecutor(fails)
    known = {specs[0].run_dir: {"status": "failed", "method": "dense", "seed": 0, "error": "tuning"}}
    rows, heard, said = run(specs[:2], executor, over=known)
    assert executor.ran == ["smoe-s0"] and heard[0] == ["dense"] and rows["dense-s0"]["error"] == "tuning"
    assert not any("done already" in line for line in said)


def test_a_changed_recipe_is_refused_before_anything_runs(specs: list[CellSpec]) -> None:
    run(specs, FakeExecutor(lambda key, seed: 2.0))
    specs[2].recipe.train.lr = 0.5
    executor = FakeExecutor(lambda key, seed: 2.0)
    with pytest.raises(ConfigError, match=r"another recipe: train.lr was 0.003, now 0.5"):
        run(specs, executor)
    assert executor.ran == []
