"""The difference of two models on one task, and averages over tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libmoe.core.errors import DataError
from libmoe.eval.results.comparison import Difference
from libmoe.eval.results.pairing import PairedScores, Scores, aggregation, is_mean, pair
from libmoe.stats import Paired, Pairs, bootstrap, exchange_test, paired, paired_average

RESAMPLES = 999
"""For metrics that are no mean, whose aggregation takes its time."""


@dataclass(frozen=True)
class Part:
    """A task that enters averages."""

    entry: str
    skill: str | None
    pairs: Pairs


def task_difference(
    task: str,
    label: str,
    metric: Mapping[str, Any],
    values: tuple[float, float],
    scores: tuple[Scores, Scores],
) -> tuple[Difference, Pairs | None]:
    """The row of one task, and its scores if they can be averaged with those of other tasks."""
    both = pair(*scores)
    row = Difference(
        name=task,
        model=label,
        metric=f"{metric['name']},{metric['filter']}",
        skill=None,
        higher_is_better=metric["higher_is_better"],
        a=values[0],
        b=values[1],
        difference=values[1] - values[0],
        documents=len(both.a),
        clusters=len(set(both.clusters)),
        left_out=both.left_out,
    )
    if all(is_mean(s, value) for s, value in zip(scores, values)):
        pairs = Pairs([float(v) for v in both.a], [float(v) for v in both.b], both.clusters)
        found = paired(*pairs)
        _fill(row, found)
        row.a, row.b = float(np.mean(pairs.a)), float(np.mean(pairs.b))
        row.wins = sum(b > a for a, b in zip(pairs.a, pairs.b))
        row.losses = sum(b < a for a, b in zip(pairs.a, pairs.b))
        averaged = row.higher_is_better and all(0 <= v <= 1 for v in (*pairs.a, *pairs.b))
        return row, pairs if averaged else None
    _resampled(row, metric["name"], values, scores, both)
    return row, None


def _fill(row: Difference, found: Paired) -> None:
    row.difference, row.p_value, row.exact = found.difference, found.p_value, found.exact
    row.clusters = found.clusters
    if math.isfinite(found.stderr):
        row.stderr, row.low, row.high, row.freedom = found.stderr, found.low, found.high, found.freedom


def _resampled(
    row: Difference,
    metric: str,
    values: tuple[float, float],
    scores: tuple[Scores, Scores],
    both: PairedScores,
) -> None:
    """Interval and p-value of a metric that is no mean, where the harness's own aggregation is known."""
    combine = aggregation(metric, scores, values)
    if combine is None or row.clusters < 2:
        return

    def drawn(places: Iterable[int]) -> float:
        places = list(places)
        return combine([both.b[i] for i in places]) - combine([both.a[i] for i in places])

    def exchanged(sides: Iterable[bool]) -> float:
        swaps = list(zip(sides, both.a, both.b))
        return combine([a if s else b for s, a, b in swaps]) - combine([b if s else a for s, a, b in swaps])

    row.a, row.b = float(combine(both.a)), float(combine(both.b))
    try:
        found = bootstrap(drawn, both.clusters, resamples=RESAMPLES)
        p_value = exchange_test(exchanged, both.clusters, RESAMPLES)
    except (ArithmeticError, ValueError) as error:  # an aggregation that some resamples have no value of
        raise DataError(f"{metric} of resampled documents: {error}") from None
    row.difference = found.value
    if math.isfinite(found.low) and math.isfinite(found.high):
        row.stderr, row.low, row.high, row.freedom = found.stderr, found.low, found.high, row.clusters - 1
        row.p_value = p_value


def average(name: str, label: str, parts: Sequence[Part]) -> Difference:
    """All parts alike, members of one entry together as one."""
    members = Counter(part.entry for part in parts)
    weights = np.array([1 / members[part.entry] for part in parts])
    weights /= weights.sum()
    pairs = [part.pairs for part in parts]
    found = paired_average(pairs, weights.tolist())
    row = Difference(
        name=name,
        model=label,
        metric=None,
        skill=None,
        higher_is_better=True,
        a=float(sum(w * np.mean(p.a) for w, p in zip(weights, pairs))),
        b=float(sum(w * np.mean(p.b) for w, p in zip(weights, pairs))),
        difference=found.difference,
        documents=found.items,
        clusters=found.clusters,
        tasks=len(parts),
    )
    _fill(row, found)
    return row
