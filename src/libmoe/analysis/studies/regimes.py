"""From scratch or upcycled: the same methods under two training regimes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from libmoe.analysis.metrics.balance import normalised_entropy
from libmoe.analysis.studies.certainty import mean_of
from libmoe.analysis.studies.contrast import Measure, contrast
from libmoe.analysis.studies.figures import Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, bits_per_byte, curves, over_steps
from libmoe.analysis.studies.saturation import mean_over_layers

SCALARS: dict[str, Callable[[Run], dict[int, float]]] = {
    "load entropy": partial(over_steps, measure=lambda layer: normalised_entropy(layer.load_N)),
    "score entropy": partial(over_steps, measure=partial(mean_of, field="normalised_entropy")),
    "margin": partial(over_steps, measure=partial(mean_of, field="margin")),
    "saturation": partial(mean_over_layers, measure="saturation"),
    "bits per byte": bits_per_byte,
}
"""Numbers by step, mean over layers."""


def study(runs: Sequence[Run], fact: str = "regime") -> Study:
    """Quality, balance, certainty and saturation over training, and differences at the end.

    Args:
        fact: of the runs, whose two values are compared.

    Raises:
        DataError: not two regimes, or no method that is in both.
    """
    series = {name: curves(runs, measure) for name, measure in SCALARS.items()}
    ends: dict[str, Measure] = {
        name: partial(_last, measure=measure) for name, measure in SCALARS.items() if name != "saturation"
    }
    ends["first checkpoint's saturation"] = lambda run: _first(mean_over_layers(run, "saturation"))
    return {
        "name": "regimes",
        "title": f"Methods by {fact}",
        "text": "Each method under both regimes, means over MoE layers and seeds with 95 % intervals. The "
        "table compares the last checkpoints pairwise by seed; a saturation that is high from the "
        "first checkpoint on says that the router hardly learned anew.",
        "figures": [drawn("lines", name, "step", name, lines) for name, lines in series.items() if lines],
        "tables": {"training": table_of(series, "step"), "differences": contrast(runs, fact, ends)},
    }


def _last(run: Run, measure: Callable[[Run], dict[int, float]]) -> dict[str, float]:
    values = measure(run)
    return {"whole": values[max(values)]} if values else {}


def _first(values: dict[int, float]) -> dict[str, float]:
    return {"whole": values[min(values)]}
