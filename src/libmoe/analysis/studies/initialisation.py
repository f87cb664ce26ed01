"""How the router's initial weights decide early balance (the initialisation study of LibMoE, arXiv 2411.00918)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.metrics import balance
from libmoe.analysis.studies.contrast import Measure, Pair, at_the_end, common_seeds, differences
from libmoe.analysis.studies.differing import differing
from libmoe.analysis.studies.figures import Study, Table, drawn, table, table_of
from libmoe.analysis.studies.holding import held, values_of
from libmoe.analysis.studies.runs import Run, bits_per_byte, curves, intervals, labels, over_steps, seeds
from libmoe.analysis.studies.words import by_label, listing, told
from libmoe.core.errors import DataError

MEASURES: Mapping[str, Callable[[LayerCounts], float]] = {
    "load entropy": lambda layer: balance.normalised_entropy(layer.load_N),
    "MaxVio": lambda layer: balance.max_violation(layer.load_N),
    "dead experts": lambda layer: float(len(balance.dead(layer.load_N))),
}
BY_STEP: dict[str, Callable[[Run], dict[int, float]]] = {
    **{name: partial(over_steps, measure=measure) for name, measure in MEASURES.items()},
    "bits per byte": bits_per_byte,
}
USUAL = "1x"
"""The beginning that others are compared with, where a method has it; otherwise its first."""


def study(runs: Sequence[Run], fact: str = "init") -> Study:
    """Balance over training for runs whose routers began differently, all else alike.

    Args:
        fact: of the runs, which says how (a standard deviation, a seed of its own).

    Raises:
        DataError: a run does not tell, all tell the same, or no method began in two ways.
    """
    began = {run.fact(fact) for run in runs}
    if len(began) < 2:
        raise DataError(
            f"all routers began alike ({fact} {', '.join(began)}); compare runs that differ in router_init_scale"
        )
    kept, left_out = held(runs, fact)
    known = values_of(kept, fact)
    several = [method for method, values in known.items() if len(values) > 1]
    if not several:
        raise DataError(
            f"no method began in two ways ({fact} {', '.join(sorted(began))}) with all else alike"
        )
    if single := [method for method in known if method not in several]:
        left_out += f" Methods that began in one way only are left out: {listing(single)}."
    kept = [run for run in kept if run.method in several]
    label = labels(fact)
    series = {name: curves(kept, measure, label) for name, measure in BY_STEP.items()}
    pairs = [pair for method in several for pair in _pairs(method, known[method])]
    paired = [pair for pair in pairs if common_seeds(kept, fact, pair)]
    references = list(dict.fromkeys(pair.before for pair in paired))
    ends: dict[str, Measure] = {
        name: partial(at_the_end, measure=measure) for name, measure in BY_STEP.items()
    }
    found = differences(kept, fact, paired, ends)
    return {
        "name": "initialisation",
        "title": "Router initialisation and early balance",
        "text": "Balance of the load at every checkpoint, mean over MoE layers; means over seeds with 95 % "
        "intervals. Large initial weights make a router sure before it has learned anything: look at "
        "the first checkpoint. The table of differences is of the last checkpoints, seed by seed. "
        f"{left_out.strip()}".rstrip(),
        "found": [
            _beginning(kept, fact),
            *differing(found, f"At the last checkpoint, against {fact} {listing(references)}"),
        ],
        "figures": [drawn("lines", name, "step", name, lines) for name, lines in series.items() if lines],
        "tables": {
            "training": table_of(series, "step"),
            "first": _first(kept, fact),
            "differences": found,
        },
    }


def _pairs(method: str, values: Sequence[str]) -> list[Pair]:
    before = USUAL if USUAL in values else values[0]
    return [Pair(method, before, after) for after in values if after != before]


def _beginning(runs: Sequence[Run], fact: str) -> str:
    """Balance at the first checkpoint by label, the least even first."""

    def first(run: Run, name: str) -> float:
        return over_steps(run, MEASURES[name])[run.series.steps[0]]

    dead = {one.label: told(one) for one in by_label(runs, partial(first, name="dead experts"), labels(fact))}
    even = by_label(runs, partial(first, name="load entropy"), labels(fact))
    said = [f"{one.label} {told(one)} with {dead[one.label]} dead experts a layer" for one in even]
    steps = sorted({run.series.steps[0] for run in runs})
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    return f"Load entropy at the first checkpoint ({when}), the least even first: {listing(said)}."


def _first(runs: Sequence[Run], fact: str) -> Table:
    """Balance at the first checkpoint, one row for each label and measure."""
    rows = []
    by_label = seeds(runs, labels(fact))
    found = {
        name: intervals(
            {
                label: [over_steps(run, measure)[run.series.steps[0]] for run in same]
                for label, same in by_label.items()
            }
        )
        for name, measure in MEASURES.items()
    }
    for label, same in by_label.items():
        rows += [(label, same[0].series.steps[0], name, *found[name][label]) for name in MEASURES]
    return table(("label", "step", "measure", "value", "low", "high"), rows)
