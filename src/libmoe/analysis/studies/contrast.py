"""Two groups of runs that differ in one fact, method by method and seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from libmoe.analysis.studies.figures import Table, table
from libmoe.analysis.studies.runs import Run, by_fact
from libmoe.core.errors import DataError
from libmoe.stats import common_runs, crossed_t

Measure = Callable[[Run], Mapping[str, float]]
"""Values by unit (subtask, domain); a single unit of any name for a number about the whole run."""


def contrast(runs: Sequence[Run], fact: str, measures: Mapping[str, Measure]) -> Table:
    """The difference of the second group to the first, for each method and measure.

    Only seeds that both groups have are compared, and units that all runs of a method have.  The interval covers other
    seeds and, where there are several, other units (:func:`libmoe.stats.crossed_t`).

    Args:
        fact: which tells the groups apart; its two values are ordered as the runs are.

    Raises:
        DataError: not two groups, or no method that is in both.
    """
    first, second = two_groups(runs, fact)
    shared = [
        m for m in dict.fromkeys(run.method for run in first[1]) if any(run.method == m for run in second[1])
    ]
    if not shared:
        raise DataError(
            f"no method is in both {first[0]!r} and {second[0]!r}; train one with the same seeds in both"
        )
    columns = ("method", "measure", first[0], second[0], "difference", "low", "high", "p_value", "covers")
    rows = []
    for method in shared:
        for name, measure in measures.items():
            values = {
                (value, run.seed): measure(run)
                for value, group in (first, second)
                for run in group
                if run.method == method
            }
            units = [
                unit
                for unit in next(iter(values.values()))
                if all(np.isfinite(v.get(unit, np.nan)) for v in values.values())
            ]
            if not units:
                continue
            found = common_runs(
                {key: [v[unit] for unit in units] for key, v in values.items()}, (first[0], second[0])
            )
            before_SU, after_SU = found.value_MSU
            test = crossed_t(after_SU - before_SU)
            means = float(before_SU.mean()), float(after_SU.mean())
            interval = test.low, test.high, test.p_value
            rows.append((method, name, *means, test.difference, *interval, test.covers))
    return table(columns, rows)


def two_groups(runs: Sequence[Run], fact: str) -> list[tuple[str, list[Run]]]:
    """Raises DataError unless the runs have just two values of the fact."""
    groups = by_fact([run for run in runs if run.fact(fact)], fact)
    if len(groups) != 2:
        raise DataError(
            f"{fact}: the runs have {len(groups)} values ({', '.join(groups) or 'none'}); give two groups"
        )
    return list(groups.items())
