"""Groups of runs that differ in one fact, method by method and seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from libmoe.analysis.studies.figures import Table, table
from libmoe.analysis.studies.holding import held, values_of
from libmoe.analysis.studies.runs import Run
from libmoe.core.errors import DataError
from libmoe.stats import common_runs, crossed_t, holm

Measure = Callable[[Run], Mapping[str, float]]
"""Values by unit (subtask, domain); a single unit of any name for a number about the whole run."""

WHOLE = "whole"
"""The unit of a number about the whole run."""

COLUMNS = (
    "method", "measure", "from", "to", "before", "after", "difference", "low", "high", "p_value", "p_holm", "covers",
)  # fmt: skip


class Pair(NamedTuple):
    """Runs of a method with the value ``before`` of a fact, and those with ``after``."""

    method: str
    before: str
    after: str


def opposed(runs: Sequence[Run], fact: str) -> tuple[list[Run], list[Pair], str]:
    """Two groups of runs that differ in one fact, the other telling facts held (:func:`held`).

    Returns:
        The runs that are left, a pair for each method that is in both groups, and what is said of runs left out.

    Raises:
        DataError: not two groups, or no method that is in both.
    """
    values = list(dict.fromkeys(value for values in values_of(runs, fact).values() for value in values))
    if len(values) != 2:
        raise DataError(
            f"{fact}: the runs have {len(values)} values ({', '.join(values) or 'none'}); give two groups"
        )
    first, second = values
    kept, left_out = held(runs, fact)
    every = [Pair(method, first, second) for method in values_of(kept, fact)]
    pairs = [pair for pair in every if common_seeds(kept, fact, pair)]
    if not pairs:
        raise DataError(
            f"no method is in both {first!r} and {second!r} with all else alike; train one with the same seeds in both"
        )
    return kept, pairs, left_out


def at_the_end(run: Run, measure: Callable[[Run], Mapping[int, float]]) -> dict[str, float]:
    """Of values by step the last one, as a :data:`Measure`; none where nothing was measured."""
    values = measure(run)
    return {WHOLE: values[max(values)]} if values else {}


def common_seeds(runs: Sequence[Run], fact: str, pair: Pair) -> set[int]:
    """Seeds that both sides have."""
    first, second = (
        {run.seed for run in runs if run.method == pair.method and run.fact(fact) == value}
        for value in pair[1:]
    )
    return first & second


def differences(
    runs: Sequence[Run], fact: str, pairs: Sequence[Pair], measures: Mapping[str, Measure]
) -> Table:
    """The difference of each pair, ``after - before``, in each measure; columns are :data:`COLUMNS`.

    Only seeds that both sides have are compared, and units that all of their runs have.  The interval covers other
    seeds and, where there are several, other units (:func:`libmoe.stats.crossed_t`).  ``p_holm`` corrects a measure's
    p-values for the number of pairs (:func:`libmoe.stats.holm`).

    Raises:
        DataError: a pair without a common seed.
    """
    rows: list[tuple[Any, ...]] = []
    for pair in pairs:
        for name, measure in measures.items():
            values = {
                (run.fact(fact), run.seed): measure(run)
                for run in runs
                if run.method == pair.method and run.fact(fact) in (pair.before, pair.after)
            }
            units = [
                unit
                for unit in next(iter(values.values()))
                if all(math.isfinite(value.get(unit, math.nan)) for value in values.values())
            ]
            if not units:
                continue
            scores = {key: [value[unit] for unit in units] for key, value in values.items()}
            before_SU, after_SU = common_runs(scores, (pair.before, pair.after)).value_MSU
            test = crossed_t(after_SU - before_SU)
            means = float(np.mean(before_SU)), float(np.mean(after_SU)), test.difference
            rows.append(
                (pair.method, name, *pair[1:], *means, test.low, test.high, test.p_value, test.covers)
            )
    corrected = _corrected([(row[1], row[9]) for row in rows])
    return table(COLUMNS, [(*row[:10], p, row[10]) for row, p in zip(rows, corrected)])


def _corrected(p_values: Sequence[tuple[str, float]]) -> list[float]:
    """Holm's correction within each measure; NaN where there is no p-value."""
    known = [(place, name, p) for place, (name, p) in enumerate(p_values) if math.isfinite(p)]
    found = [math.nan] * len(p_values)
    for measure in dict.fromkeys(name for _, name, _ in known):
        for place, p in holm({place: p for place, name, p in known if name == measure}).items():
            found[place] = p
    return found
