"""``libmoe pipeline``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import emit_json, say, table
from libmoe.mlops.pipeline import load_pipeline
from libmoe.mlops.running import run_pipeline, status


def run(file: Path, folder: Path | None, *, quiet: bool, as_json: bool) -> None:
    ran = run_pipeline(load_pipeline(file), folder, quiet=quiet or as_json, say=say)
    if as_json:
        emit_json({"ran": ran})
    say(f"{len(ran)} step{'s' * (len(ran) != 1)} ran" if ran else "Nothing to do: every step is done.")


def show(file: Path, folder: Path | None, *, as_json: bool) -> None:
    pipeline = load_pipeline(file)
    places = status(pipeline, folder)
    rows = [
        {
            "step": place.name,
            "state": place.state,
            "needs": pipeline.needs[place.name],
            "folder": str(place.folder),
        }
        for place in places
    ]
    if as_json:
        emit_json(rows)
        return
    cells = [[row["step"], row["state"], ", ".join(row["needs"]) or "-", row["folder"]] for row in rows]
    table(["step", "state", "needs", "folder"], cells)
