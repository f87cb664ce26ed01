"""The table of running cells fits any terminal; without one there is a line for each result."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from libmoe.bench import Grid, load_grid
from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.live import LiveTable


@pytest.fixture
def specs(tmp_path: Path) -> list[CellSpec]:
    grid = load_grid("quickstart")
    grid.recipe.train.steps = 300
    return [
        CellSpec(e.key, e.label, grid.cell_recipe(e, seed, e.options), str(tmp_path / f"{e.key}-s{seed}"))
        for seed in grid.seeds
        for e in grid.entries
    ]


def ok(spec: CellSpec) -> dict[str, Any]:
    return failed_row(spec, "") | {"status": "ok", "bits_per_byte": 2.34567, "tokens_per_second": 12345.6}


def screen(table: LiveTable, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    table.console = console
    console.print(table.render())
    return console.file.getvalue().splitlines()


def test_eighteen_cells_fit_eighty_columns_and_twenty_four_lines(specs: list[CellSpec]) -> None:
    table = LiveTable(specs, {})
    for spec in specs[:5]:
        table.started(spec)
    for spec in specs[:3]:
        table.finished(spec, ok(spec))
    Path(specs[3].run_dir).mkdir()
    Path(specs[3].run_dir, "metrics.jsonl").write_text(
        json.dumps({"step": 120, "loss": 5.4321}) + '\n{"step": 1'
    )
    lines = screen(table, 80, 24)
    assert len(lines) <= 22 and max(map(len, lines)) <= 80
    assert lines[0].startswith("3 of 18 cells done, about ")
    assert lines[1].split() == ["method", "seed", "state", "step", "loss", "bits/byte", "tokens/s"]
    assert lines[2].split() == ["dense", "0", "done", "300", "2.3457", "12,346"]
    assert lines[5].split() == ["switch", "0", "training", "120/300", "5.432"]
    assert lines[6].split() == ["moe-plus-plus", "0", "training", "0/300"]
    assert lines[-1].split() == ["dense-wide", "1", "waiting"]


def test_a_small_terminal_shows_failures_and_work_before_the_rest(specs: list[CellSpec]) -> None:
    table = LiveTable(specs, {specs[0].run_dir: ok(specs[0])})
    table.finished(specs[1], failed_row(specs[1], "no"))
    table.started(specs[17])
    lines = screen(table, 72, 10)
    assert len(lines) <= 9 and max(map(len, lines)) <= 72
    text = "\n".join(lines)
    assert "failed" in text and "dense-wide" in text and "training" in text and "and 13 more" in text


def test_away_from_a_terminal_each_result_is_one_line(specs: list[CellSpec]) -> None:
    said: list[str] = []
    with LiveTable(specs[:2], {}, say=said.append) as table:
        assert table.live is None
        table.started(specs[0])
        table.refresh()
        table.finished(specs[0], ok(specs[0]))
        table.finished(specs[1], failed_row(specs[1], "lower train.lr"))
    assert said[0].startswith("[1/2] dense seed 0: 2.3457 bits/byte (0 s)")
    assert said[1].startswith("[2/2] smoe seed 0: failed: lower train.lr")


def test_a_terminal_gets_the_table(specs: list[CellSpec], mini: Callable[..., Grid]) -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    with LiveTable(specs, {}, console=console) as table:
        table.started(specs[0])
    assert "dense-wide" in console.file.getvalue()
