"""How the router's initial weights decide early balance (the initialisation study of LibMoE, arXiv 2411.00918)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.metrics import balance
from libmoe.analysis.studies.figures import Study, Table, drawn, table, table_of
from libmoe.analysis.studies.runs import Run, bits_per_byte, curves, interval, labels, over_steps, seeds
from libmoe.core.errors import DataError

MEASURES: Mapping[str, Callable[[LayerCounts], float]] = {
    "load entropy": lambda layer: balance.normalised_entropy(layer.load_N),
    "MaxVio": lambda layer: balance.max_violation(layer.load_N),
    "dead experts": lambda layer: float(len(balance.dead(layer.load_N))),
}


def study(runs: Sequence[Run], fact: str = "init") -> Study:
    """Balance over training for runs whose routers began differently.

    Args:
        fact: of the runs, which says how (a standard deviation, a seed of its own).

    Raises:
        DataError: a run does not tell, or all tell the same.
    """
    began = {run.fact(fact) for run in runs}
    if len(began) < 2:
        raise DataError(
            f"all routers began alike ({fact} {', '.join(began)}); compare runs that differ in router_init_scale"
        )
    label = labels(fact)
    series = {
        name: curves(runs, partial(over_steps, measure=measure), label) for name, measure in MEASURES.items()
    }
    series["bits per byte"] = curves(runs, bits_per_byte, label)
    return {
        "name": "initialisation",
        "title": "Router initialisation and early balance",
        "text": "Balance of the load at every checkpoint, mean over MoE layers; means over seeds with 95 % "
        "intervals. Large initial weights make a router sure before it has learned anything: look at "
        "the first checkpoint.",
        "figures": [drawn("lines", name, "step", name, lines) for name, lines in series.items() if lines],
        "tables": {"training": table_of(series, "step"), "first": _first(runs, fact)},
    }


def _first(runs: Sequence[Run], fact: str) -> Table:
    """Balance at the first checkpoint, one row for each label and measure."""
    rows = []
    for label, same in seeds(runs, labels(fact)).items():
        for name, measure in MEASURES.items():
            found = interval([over_steps(run, measure)[run.series.steps[0]] for run in same])
            rows.append((label, same[0].series.steps[0], name, *found))
    return table(("label", "step", "measure", "value", "low", "high"), rows)
