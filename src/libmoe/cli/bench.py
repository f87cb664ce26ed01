"""``libmoe quickstart``, ``libmoe bench`` and ``libmoe report``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from libmoe.cli.output import emit_json, say


def run(
    source: str,
    out: Path | None,
    overrides: Sequence[str],
    plugins: Sequence[str],
    *,
    add: Sequence[str] = (),
    only: Sequence[str] = (),
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Exits with code 1 when a cell failed: what the others gave is reported all the same."""
    from libmoe.bench import load_grid, run_grid

    begun = time.monotonic()
    grid = load_grid(source, overrides)
    if only:
        grid.select([key for key in only if key not in add])
    for name in add:
        grid.add_method(name)
    folder = out or Path("runs") / grid.name
    methods, seeds = len(grid.entries), len(grid.seeds)
    say(f"{methods} methods x {seeds} seeds, {grid.recipe.train.steps} steps each -> {folder}")
    run_grid(grid, folder, plugins=plugins, say=say, live=not quiet)
    html = write_report(folder)
    say(f"Done in {(time.monotonic() - begun) / 60:.1f} minutes. Open {html} in a browser.")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if as_json:
        emit_json(results)
    if any(row["status"] != "ok" for row in results["rows"]):
        raise typer.Exit(1)


def write_report(folder: Path) -> Path:
    from libmoe.report import summarise
    from libmoe.report import write_report as write

    paths = write(folder)
    for line in summarise(folder)["headline"]:
        say(line)
    return paths.html
