"""``libmoe monitor``."""

from __future__ import annotations

from pathlib import Path

import typer

from libmoe.cli.output import emit_json, say, table


def run(
    reference: Path, live: Path, events_file: Path | None, false_alarms: float | None, *, as_json: bool
) -> None:
    """Exits with code 1 when routing has drifted or experts have died."""
    from libmoe.mlops.drift import FALSE_ALARMS, DriftDetector
    from libmoe.mlops.monitor import events, health, note_events
    from libmoe.mlops.usage import usage_of

    then, now = (usage_of(_trace(folder)) for folder in (reference, live))
    detector = DriftDetector(then, false_alarms=FALSE_ALARMS if false_alarms is None else false_alarms)
    drift, state = detector.check(now), health(now)
    found = events(drift, then, now)
    if as_json:
        rows = [{**vars(each), "drifted": each.drifted, **state[each.layer]} for each in drift.layers]
        emit_json({"layers": rows, "sequences": list(drift.sequences), "events": found})
    else:
        head = ["layer", "divergence", "threshold", "drifted", "load CV", "MaxVio", "entropy / ln N", "dead"]
        rows_of = ((each, state[each.layer]) for each in drift.layers)
        table(head, [
            [each.layer, each.divergence, each.threshold, each.drifted, now["cv"], now["max_violation"],
             now["normalised_entropy"], len(now["dead"])]
            for each, now in rows_of
        ])  # fmt: skip
    say(drift.words)
    for each in found:
        say(f"{each['kind']}: {each['message']}; advice: {each['action']}")
    if found and events_file is not None:
        note_events(events_file, found)
        say(f"Noted in {events_file}")
    if found:
        raise typer.Exit(1)


def _trace(folder: Path) -> Path:
    """The trace that a folder is, or the one in a run or model folder."""
    return folder if (folder / "trace.json").is_file() else folder / "trace"
