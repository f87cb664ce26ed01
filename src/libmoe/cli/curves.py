"""``libmoe eval RUN --checkpoints``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.output import console, emit_json, say, table

STEPS = 6
"""Columns that fit a terminal; all steps are in the picture and in JSON."""


def run(
    model: Path,
    names: Sequence[str],
    settings: Mapping[str, Any],
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    include: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    from libmoe.cli.evaluate import bars
    from libmoe.eval.curves import curve
    from libmoe.eval.harness import Settings

    with bars(quiet or as_json) as progress:
        found = curve(
            model,
            names or ["embedded"],
            Settings(**settings),
            progress,
            out=out,
            data_dir=data_dir,
            include=include,
            overwrite=overwrite,
        )
    if as_json:
        emit_json(found)
        return
    show(found)
    for name, why in found["failed"].items():
        say(f"warning: {name}: {why}")
    for note in found["notes"]:
        say(f"note: {note}")
    say(f"Saved to {found['saved_to']}")


def show(found: dict[str, Any]) -> None:
    """Scores by step, then the best checkpoints against the last."""
    points, last = found["checkpoints"], found["final"]
    shown = [points[i] for i in sorted({round(i * (len(points) - 1) / (STEPS - 1)) for i in range(STEPS)})]
    scores = [["validation"] + [f"{p['validation']:.4f}" for p in shown]]
    scores += [["test"] + [f"{p['bits_per_byte']:.4f}" for p in shown]]
    scores += [[task] + [f"{p['tasks'][task]['value']:.4f}" for p in shown] for task in found["tasks"]]
    title = f"Bits per byte of held-out text, and tasks, by step ({len(shown)} of {len(points)} checkpoints)"
    table(["", *(str(p["step"]) for p in shown)], scores, title=title)
    console.print()

    chosen = found["heldout"]["best_by_validation"]
    rows = [
        [task, str(s["best"]), *_interval(s["difference"]), *_interval(s["crossfit"])]
        for task, s in _gaining(found)
    ]
    if rows:
        columns = ["chosen by", "step", "gain", "95 %", "cross-fitted", "95 %"]
        table(columns, rows, title=f"The best checkpoint of each task against the last (step {last})")
        console.print()
    if chosen == last:
        say("Validation chooses the last checkpoint.")
        return
    rows = [["bits per byte", *_interval(found["heldout"]["by_validation"])]]
    rows += [[task, *_interval(summary["by_validation"])] for task, summary in found["tasks"].items()]
    title = f"The best checkpoint by validation (step {chosen}) against the last (step {last})"
    table(["score", "difference", "95 %"], rows, title=title)


def _gaining(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Tasks whose best checkpoint is not the last."""
    return [(task, summary) for task, summary in found["tasks"].items() if summary["best"] != found["final"]]


def _interval(found: dict[str, Any] | None) -> tuple[str, str]:
    """A difference and its interval."""
    if found is None:
        return "-", "-"
    low, high = found.get("low"), found.get("high")
    around = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    return f"{found['difference']:+.4f}", around
