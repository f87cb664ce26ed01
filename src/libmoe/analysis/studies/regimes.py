"""From scratch or upcycled: the same methods under two training regimes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from libmoe.analysis.metrics.balance import normalised_entropy
from libmoe.analysis.studies.certainty import mean_of
from libmoe.analysis.studies.contrast import WHOLE, Measure, at_the_end, differences, opposed
from libmoe.analysis.studies.differing import differing
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
    kept, pairs, left_out = opposed(runs, fact)
    series = {name: curves(kept, measure) for name, measure in SCALARS.items()}
    ends: dict[str, Measure] = {
        name: partial(at_the_end, measure=measure)
        for name, measure in SCALARS.items()
        if name != "saturation"
    }
    ends["first checkpoint's saturation"] = lambda run: _first(mean_over_layers(run, "saturation"))
    found = differences(kept, fact, pairs, ends)
    return {
        "name": "regimes",
        "title": f"Methods by {fact}",
        "text": "Each method under both regimes, means over MoE layers and seeds with 95 % intervals. The "
        "table compares the last checkpoints pairwise by seed; a saturation that is high from the "
        f"first checkpoint on says that the router hardly learned anew. {left_out}".rstrip(),
        "found": differing(found, f"With {fact} {pairs[0].after} instead of {pairs[0].before}"),
        "figures": [drawn("lines", name, "step", name, lines) for name, lines in series.items() if lines],
        "tables": {"training": table_of(series, "step"), "differences": found},
    }


def _first(values: dict[int, float]) -> dict[str, float]:
    return {WHOLE: values[min(values)]}
