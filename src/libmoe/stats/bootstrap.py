"""Intervals for what is no mean: perplexities, correlations, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.stats.clusters import Members, numbered

JACKKNIFE = 200
"""The acceleration is estimated by leaving out one of at most so many groups of clusters."""

Statistic = Callable[[NDArray[np.int64]], float]
"""A number computed from items, which are given by their places; a place may occur several times."""


class Interval(NamedTuple):
    """A statistic of all items, its bootstrap standard error and interval; NaN with one cluster."""

    value: float
    stderr: float
    low: float
    high: float
    clusters: int


def bootstrap(
    statistic: Statistic,
    clusters: Sequence[Hashable] | int,
    *,
    resamples: int = 1999,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    seed: int = 0,
) -> Interval:
    """Draw whole clusters with replacement and compute ``statistic`` of their items.

    ``percentile`` takes quantiles of what comes out.  ``bca`` shifts them for bias and for a standard error that
    depends on the value (Efron 1987, "Better bootstrap confidence intervals").  The shift needs the statistic without
    each cluster in turn; of many clusters, groups of equal size are left out instead, which estimates the same.

    Args:
        statistic: called with an array of places.
        clusters: the cluster of each item, or the number of items when each is its own.
        seed: of the draws.

    Raises:
        ValueError: no items.
    """
    members = Members(
        numbered(None, clusters) if isinstance(clusters, int) else numbered(clusters, len(clusters))
    )
    if not members.items:
        raise ValueError("no items to resample")
    value = float(statistic(np.arange(members.items)))
    if members.count < 2:
        return Interval(value, math.nan, math.nan, math.nan, members.count)
    rng = np.random.default_rng(seed)
    draws = np.array(
        [statistic(members.of(rng.integers(members.count, size=members.count))) for _ in range(resamples)]
    )
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca" and draws.min() < draws.max():
        tails = _shifted(tails, draws, value, _acceleration(statistic, members, rng))
    low, high = np.quantile(draws, tails)
    return Interval(value, float(draws.std(ddof=1)), float(low), float(high), members.count)


def _shifted(
    tails: NDArray[np.float64], draws: NDArray[np.float64], value: float, acceleration: float
) -> NDArray[np.float64]:
    """Which quantiles of the draws to take instead of ``tails``."""
    from scipy.special import ndtr, ndtri

    below = (draws < value).sum() + 0.5 * (draws == value).sum()
    bias = ndtri(np.clip(below, 0.5, len(draws) - 0.5) / len(draws))
    reach = bias + ndtri(tails)
    return ndtr(bias + reach / (1 - acceleration * reach))


def _acceleration(statistic: Statistic, members: Members, rng: np.random.Generator) -> float:
    """A sixth of the skewness of the statistic's influence values."""
    groups = np.array_split(rng.permutation(members.count), min(members.count, JACKKNIFE))
    everything = np.arange(members.count)
    left = np.array([statistic(members.of(np.setdiff1d(everything, group))) for group in groups])
    influence = left.mean() - left
    spread = float(np.square(influence).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread else 0.0
