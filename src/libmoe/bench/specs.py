"""Run cells of whatever kind under one table: all but those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from libmoe.bench.cell import CellSpec, finished_row
from libmoe.bench.executors import Executor
from libmoe.bench.executors.base import Say
from libmoe.bench.live import LiveTable
from libmoe.bench.results import Row
from libmoe.core.files import read_json

Heard = Callable[[Sequence[Row]], None]


def run_specs(
    specs: Sequence[CellSpec],
    folder: Path,
    executor: Executor,
    *,
    over: Mapping[str, Row] | None = None,
    heard: Heard = lambda rows: None,
    say: Say = print,
    live: bool = True,
) -> dict[str, Row]:
    """Run cells, all but those that are done, under a live table.

    Args:
        folder: of the grid; logs of workers go there.
        over: rows of cells that are not to be run, by run folder; ``None`` looks for those of cells that are done.
        heard: called once with the rows of all cells that are over already, then with each row that comes.

    Returns:
        Rows by run folder, failed ones too.  Cells that the executor has handed over to another system have none.

    Raises:
        ConfigError: a run folder was begun with another recipe, plugin or checkpoint.
    """
    over = finished_rows(specs) if over is None else over
    rows = {spec.run_dir: over[spec.run_dir] for spec in specs if spec.run_dir in over}
    todo = [spec for spec in specs if spec.run_dir not in rows]
    if rows:
        heard([*rows.values()])
    if not specs:
        return rows
    if not todo:
        say(f"All {len(specs)} cells are done already; there is nothing to run.")
        return rows
    if kept := sum(row["status"] == "ok" for row in rows.values()):
        say(f"{kept} of {len(specs)} cells are done already and are kept.")
    with LiveTable(specs, rows, enabled=live, say=say, metrics=executor.metrics) as table:

        def finished(spec: CellSpec, row: Row) -> None:
            rows[spec.run_dir] = row
            heard([row])
            table.finished(spec, row)

        executor.run(todo, folder, started=table.started, finished=finished, tick=table.refresh)
    for spec in todo:
        row = rows.get(spec.run_dir)
        if row is None:  # handed over to another system; how it failed before is all that is known of it
            if (row := read_json(spec.row_file)) is not None:
                heard([row])
        elif table.live is not None and row["status"] != "ok":  # without a table it has been said
            say(f"{spec.name} failed: {row['error']}")
    return rows


def finished_rows(specs: Iterable[CellSpec]) -> dict[str, Row]:
    """Rows of the cells that are done already, by run folder.

    Raises:
        ConfigError: a run folder was begun with another recipe, plugin or checkpoint.
    """
    return {spec.run_dir: row for spec in specs if (row := finished_row(spec)) is not None}
