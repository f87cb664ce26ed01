"""The difference of two models that answered the same items."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.stats.clusters import numbered
from libmoe.stats.means import clustered_mean, student
from libmoe.stats.permutation import sign_flip
from libmoe.stats.power import detectable_difference


class Pairs(NamedTuple):
    """Scores of two models on the same items, in the same order, and the cluster of each item."""

    a: Sequence[float]
    b: Sequence[float]
    clusters: Sequence[Hashable] | None = None


class Paired(NamedTuple):
    """The mean of ``b - a``.

    Attributes:
        stderr, low, high: clustered standard error and interval; NaN where a cluster stands alone.
        p_value, exact: of the sign-flip test over clusters, see :func:`libmoe.stats.sign_flip`.
        freedom: degrees of freedom of the standard error.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    exact: bool
    items: int
    clusters: int
    freedom: float

    def detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """The smallest difference that a comparison with so much scatter finds with probability ``power``.

        Infinite where there are too few clusters for the test to reach the level at all, NaN without scatter.
        """
        if 2.0 ** (1 - self.clusters) > 1 - level:
            return math.inf
        return detectable_difference(self.stderr, self.freedom, level=level, power=power)


def paired(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """How much better ``b`` scores than ``a``, item by item.

    Hard items are hard for both models, so the scatter of the difference is often far below that of either mean
    (Miller 2024, arXiv 2411.00640).  The standard error and Student's interval take clusters into account
    as :func:`libmoe.stats.clustered_mean` does; the test flips the signs of whole clusters.

    Args:
        a, b: one score per item.
        clusters: the cluster of each item; ``None``: each item is its own.
        level: of the interval.
        seed: of random signs, where there are too many to try.

    Raises:
        ValueError: no items, or sequences of different lengths.
    """
    return paired_average([Pairs(a, b, clusters)], level=level, seed=seed)


def paired_average(
    parts: Sequence[Pairs], weights: Sequence[float] | None = None, *, level: float = 0.95, seed: int = 0
) -> Paired:
    """A weighted average of paired differences over independent parts (tasks), the parts themselves being fixed.

    Errors of the parts add up; their degrees of freedom are pooled as Satterthwaite 1946 does.  The interval says how
    the average would vary over other items of the same tasks, not over other tasks.

    Args:
        weights: of the parts, made to sum to one; ``None``: all alike.

    Raises:
        ValueError: no parts, no items in one, or lengths that do not fit.
    """
    if not parts:
        raise ValueError("no parts to average")
    share = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(parts),):
        raise ValueError(f"{share.size} weights do not fit {len(parts)} parts")
    share = share / share.sum()
    differences = [_difference(part) for part in parts]
    means = [clustered_mean(d.tolist(), part.clusters) for d, part in zip(differences, parts)]
    sums = [
        np.bincount(numbered(part.clusters, d.size), weights=d) * weight / d.size
        for d, part, weight in zip(differences, parts, share)
    ]
    test = sign_flip(np.concatenate(sums), seed=seed)
    difference = float(sum(share * [mean.value for mean in means]))
    variance = [float(weight * mean.stderr) ** 2 for weight, mean in zip(share, means)]
    stderr, freedom = math.sqrt(sum(variance)), _freedom(variance, [mean.clusters for mean in means])
    half = student(level, freedom) * stderr if stderr else stderr
    return Paired(
        difference=difference,
        stderr=stderr,
        low=difference - half,
        high=difference + half,
        p_value=test.p_value,
        exact=test.exact,
        items=sum(mean.items for mean in means),
        clusters=sum(mean.clusters for mean in means),
        freedom=freedom,
    )


def _difference(part: Pairs) -> NDArray[np.float64]:
    a, b = np.asarray(part.a, dtype=np.float64), np.asarray(part.b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} scores cannot be paired")
    return b - a


def _freedom(variance: Sequence[float], clusters: Sequence[int]) -> float:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946)."""
    total = sum(variance)
    if not total > 0:  # no scatter, or a part of one cluster, whose scatter is unknown
        return float(sum(clusters) - len(clusters))
    return total**2 / sum(v * v / (count - 1) for v, count in zip(variance, clusters) if v)
