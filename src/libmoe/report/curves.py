"""Learning curves: one line per method, averaged over seeds, with the band that the seeds span."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.report.load import Grid
from libmoe.report.values import number

POINTS = 96
"""A line keeps at most this many points; more would not be seen."""


def learning_curves(grid: Grid) -> dict[str, list[dict[str, Any]]]:
    """Return ``{"held_out": [...], "training": [...]}``, one series per method that logged the quantity.

    A series has ``method``, ``tokens``, ``mean``, ``low`` and ``high`` (lowest and highest seed) and ``seeds``.
    Training loss is the mean over a sliding window of a fortieth of the run, in nats per token.
    """
    methods = list(dict.fromkeys(row.method for row in grid.finished))
    curves: dict[str, list[dict[str, Any]]] = {"held_out": [], "training": []}
    for method in methods:
        runs = [grid.runs[method, row.seed] for row in grid.finished if row.method == method]
        held_out = [_points(run.evaluation.get("curve"), "bits_per_byte") for run in runs]
        training = [_smooth(_points(run.metrics, "loss")) for run in runs]
        for name, lines in (("held_out", held_out), ("training", training)):
            series = _average([line for line in lines if len(line)])
            if series:
                curves[name].append({"method": method, **series})
    return curves


def _points(steps: Any, field: str) -> NDArray[np.float64]:
    """Return ``[points, 2]`` tokens and values, sorted by tokens; unusable entries are left out."""
    if not isinstance(steps, Sequence):
        return np.empty((0, 2))
    pairs = [
        (number(step.get("tokens")), number(step.get(field))) for step in steps if isinstance(step, dict)
    ]
    usable = {tokens: value for tokens, value in pairs if tokens is not None and value is not None}
    return np.array(sorted(usable.items()), dtype=np.float64).reshape(-1, 2)


def _smooth(line: NDArray[np.float64]) -> NDArray[np.float64]:
    width = len(line) // 40
    if width < 2:
        return line
    total = np.cumsum(np.vstack([np.zeros((1, 2)), line]), axis=0)
    return (total[width:] - total[:-width]) / width


def _average(lines: list[NDArray[np.float64]]) -> dict[str, Any] | None:
    """Average over seeds on the tokens that all of them reached."""
    if not lines:
        return None
    start, end = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
    at = min(lines, key=len)[:, 0]
    at = at[(at >= start) & (at <= end)]
    if len(at) == 0:
        return None
    if len(at) > POINTS:
        at = np.linspace(at[0], at[-1], POINTS)
    values = np.stack([np.interp(at, line[:, 0], line[:, 1]) for line in lines])
    return {
        "seeds": len(lines),
        "tokens": [round(float(x)) for x in at],
        "mean": _rounded(values.mean(axis=0)),
        "low": _rounded(values.min(axis=0)),
        "high": _rounded(values.max(axis=0)),
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]
