"""Alarms that runs raised while they trained: experts without tokens, collapsed loads, jumps of the loss."""

from __future__ import annotations

from typing import Any

from libmoe.report.load import Grid
from libmoe.report.naming import Summary, label_of
from libmoe.report.numbers import listing
from libmoe.report.values import number

KINDS = {"collapse": "Collapse", "dead_experts": "Dead experts", "loss_spike": "Loss spikes"}
"""As :mod:`libmoe.train.alarms` calls them, and as tables do; gravest first."""


def alarms_raised(grid: Grid) -> list[dict[str, Any]]:
    """One entry per method that raised any: ``method``, ``runs`` (how many it has) and ``alarms``.

    Each alarm has its ``kind``, the ``seeds`` that raised it, the ``layers`` that it was about, how many ``times`` it
    was raised in all, and the ``first`` and ``last`` step that it was raised at.
    """
    found = []
    for method in dict.fromkeys(row.method for row in grid.finished):
        seeds = [row.seed for row in grid.finished if row.method == method]
        raised = [
            (alarm, seed, number(record.get("step")))
            for seed in seeds
            for record in grid.runs[method, seed].metrics
            for alarm in _alarms(record)
        ]
        alarms = [_summed(kind, [r for r in raised if r[0].get("kind") == kind]) for kind in KINDS]
        if any(alarms):
            found.append({"method": method, "runs": len(seeds), "alarms": [alarm for alarm in alarms if alarm]})
    return found


def _alarms(record: dict[str, Any]) -> list[dict[str, Any]]:
    alarms = record.get("alarms")
    return [alarm for alarm in alarms if isinstance(alarm, dict)] if isinstance(alarms, list) else []


def _summed(kind: str, raised: list[tuple[dict[str, Any], int, float | None]]) -> dict[str, Any] | None:
    if not raised:
        return None
    steps = [int(step) for _, _, step in raised if step is not None]
    layers = {int(layer) for alarm, _, _ in raised if (layer := number(alarm.get("layer"))) is not None}
    return {
        "kind": kind,
        "seeds": sorted({seed for _, seed, _ in raised}),
        "layers": sorted(layers),
        "times": len(raised),
        "first": min(steps, default=None),
        "last": max(steps, default=None),
    }


def alarm_words(summary: Summary) -> list[str]:
    """Who collapsed and who left experts without tokens, in a sentence."""
    said = []
    for kind, words in (("collapse", "collapsed loads"), ("dead_experts", "experts without tokens")):
        raised = [
            (label_of(summary, entry["method"]), len(alarm["seeds"]), entry["runs"])
            for entry in summary["alarms"]
            for alarm in entry["alarms"]
            if alarm["kind"] == kind
        ]
        if raised:
            raised.sort(key=lambda item: -item[1] / item[2])
            names = listing([f"{label} (in {seeds} of {runs})" for label, seeds, runs in raised], 5)
            said.append(f"{words} in {names}")
    return [f"Alarms while training, by runs: {'; '.join(said)}."] if said else []
