"""Monitoring: health of the load, drift of the routing, and a file of events that says what to do."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.analysis.metrics import balance
from libmoe.mlops.drift import Drift
from libmoe.mlops.usage import Usage
from libmoe.train.metrics import JsonLines


def health(usage: Usage) -> dict[int, dict[str, Any]]:
    """How evenly each layer uses its experts: ``cv``, ``max_violation``, ``normalised_entropy``, ``dead`` (experts)."""
    found = {}
    for layer, count_UN in usage.items():
        load_N = count_UN.sum(0)
        found[layer] = {
            "cv": balance.coefficient_of_variation(load_N),
            "max_violation": balance.max_violation(load_N),
            "normalised_entropy": float(balance.normalised_entropy(load_N)),
            "dead": balance.dead(load_N),
        }
    return found


def events(drift: Drift, reference: Usage, live: Usage) -> list[dict[str, Any]]:
    """What someone should know, as JSON can hold it: ``when``, ``kind``, ``message``, ``action`` and details.

    Kinds are ``routing-drift``, and ``dead-experts`` for experts that have died since the reference.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found: list[dict[str, Any]] = []
    if drift.drifted:
        found.append(
            {
                "when": when,
                "kind": "routing-drift",
                "message": drift.words,
                "action": "evaluate on the text that is served now; train on with it in the mixture, and promote what "
                "passes the gate; roll back if a new version began to serve",
                "sequences": list(drift.sequences),
                "layers": [asdict(layer) for layer in drift.drifted],
            }
        )
    then, now = health(reference), health(live)
    died = {layer: sorted(set(now[layer]["dead"]) - set(then[layer]["dead"])) for layer in now}
    if any(died.values()):
        names = "; ".join(
            f"layer {layer}: {', '.join(map(str, each))}" for layer, each in died.items() if each
        )
        found.append(
            {
                "when": when,
                "kind": "dead-experts",
                "message": f"experts that the reference used get almost no tokens: {names}",
                "action": "look whether the text that is served lacks a domain; if not, train on with a larger "
                "method.options.balance",
                "layers": [{"layer": layer, "experts": each} for layer, each in died.items() if each],
            }
        )
    return found


def note_events(file: str | Path, found: list[dict[str, Any]]) -> None:
    """Append events to a file, one JSON object a line.

    A step of a pipeline that has the file among its inputs, and what needs that step, runs again after each event.
    """
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(path, path.stat().st_size if path.exists() else 0)
    try:
        for event in found:
            lines.write(event)
        lines.sync()
    finally:
        lines.close()
