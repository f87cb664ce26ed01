"""How the router's initial weights decide early balance (the initialisation study of LibMoE, arXiv 2411.00918)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.metrics import balance
from libmoe.analysis.studies.figures import Study, Table, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves, interval, labels, over_layers, seeds

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
        DataError: a run does not tell.
    """
    for run in runs:
        run.fact(fact)
    label = labels(fact)
    series = {name: curves(runs, partial(_over_training, name=name), label) for name in MEASURES}
    series["bits per byte"] = curves(
        runs, lambda run: {s: q.bits_per_byte for s, q in run.quality.items()}, label
    )
    return {
        "name": "initialisation",
        "title": "Router initialisation and early balance",
        "text": "Balance of the load at every checkpoint, mean over MoE layers; means over seeds with 95 % "
        "intervals. Large initial weights make a router sure before it has learned anything: look at "
        "the first checkpoint.",
        "figures": [drawn("lines", name, "step", name, lines) for name, lines in series.items() if lines],
        "tables": {"training": table_of(series, "step"), "first": _first(runs, fact)},
    }


def _over_training(run: Run, name: str) -> dict[int, float]:
    return {step: _balance(run, place, name) for place, step in enumerate(run.series.steps)}


def _balance(run: Run, place: int, name: str) -> float:
    return over_layers(MEASURES[name](layer) for layer in run.series.counts(place).layers.values())


def _first(runs: Sequence[Run], fact: str) -> Table:
    """Balance at the first checkpoint, one row for each label and measure."""
    table: Table = {name: [] for name in ("label", "step", "measure", "value", "low", "high")}
    for label, same in seeds(runs, labels(fact)).items():
        for name in MEASURES:
            row = interval([_balance(run, 0, name) for run in same])
            bounds = [bound if bound == bound else None for bound in row]
            for column, value in zip(table, (label, same[0].series.steps[0], name, *bounds)):
                table[column].append(value)
    return table
