"""``libmoe quickstart``, ``libmoe bench`` and ``libmoe report``."""

from __future__ import annotations

import json
import time
from pathlib import Path

from libmoe.cli.output import emit_json, say


def run(
    source: str,
    out: Path | None,
    overrides: list[str],
    plugins: list[str],
    add: list[str],
    only: list[str],
    quiet: bool,
    as_json: bool,
) -> None:
    from libmoe.bench import load_grid, run_grid

    begun = time.monotonic()
    grid = load_grid(source, overrides)
    if only:
        grid.select([k for k in only if k not in add])
    for name in add:
        grid.add_method(name)
    folder = out or Path("runs") / grid.name
    say(
        f"{len(grid.entries)} methods x {len(grid.seeds)} seeds, {grid.recipe.train.steps} steps each -> {folder}"
    )
    run_grid(grid, folder, plugins=plugins, say=say, live=not quiet)
    html = write_report(folder)
    say(f"Done in {(time.monotonic() - begun) / 60:.1f} minutes. Open {html} in a browser.")
    if as_json:
        emit_json(json.loads((folder / "results.json").read_text(encoding="utf-8")))


def write_report(folder: Path) -> Path:
    from libmoe.report import summarise
    from libmoe.report import write_report as write

    paths = write(folder)
    for line in summarise(folder)["headline"]:
        say(line)
    return paths.html
