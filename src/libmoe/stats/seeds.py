"""How much the score of one method varies from seed to seed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.means import Mean, clustered_mean, student

Floats = NDArray[np.float64]

WILD = 0.99
"""A method is kept out of the pool when equal methods would hardly ever scatter so unequally: beyond this quantile."""
ENOUGH = 5
"""From so many seeds on the scatter of a method is known well enough from its own."""
EQUAL_GRIDS = 4000
"""Imagined grids of equal methods from which that quantile is read."""


class Scatter(NamedTuple):
    """Standard deviation of one run's score between seeds, and the degrees of freedom it was estimated with."""

    sigma: float
    freedom: int


def pooled_scatter(value_MS: Floats) -> Scatter:
    """Pool the scatter of seeds over methods, what a seed does to all of them alike taken out.

    Two or three seeds of one method say next to nothing of its scatter; those of ten methods together do, if all
    scatter about equally.  It is the residual of the randomised-block analysis of variance with
    ``(M - 1)(S - 1)`` degrees of freedom.  Of four methods or more, one whose variance (after each seed's median over
    methods) exceeds the median variance by more than :data:`WILD` of all grids of equal methods would is left out, and
    M counts the others: its instability is its own and must not widen everybody's interval.

    Args:
        value_MS: one score per method and seed.

    Raises:
        DataError: fewer than two methods or two seeds.
    """
    methods, seeds = value_MS.shape
    if methods < 2 or seeds < 2:
        raise DataError(f"{methods} methods x {seeds} seeds tell nothing of scatter; it takes two of each")
    _, own, freedom = _squares(value_MS[~_wild(value_MS)])
    return Scatter(math.sqrt(own), freedom)


def _squares(value_MS: Floats) -> tuple[float, float, int]:
    """Mean squares of the randomised blocks, of seeds and of the residual, and the latter's degrees of freedom."""
    methods, seeds = value_MS.shape
    of_seed_S = value_MS.mean(axis=0) - value_MS.mean()
    residual = value_MS - value_MS.mean(axis=1, keepdims=True) - of_seed_S
    freedom = (methods - 1) * (seeds - 1)
    common = methods * float(np.square(of_seed_S).sum()) / (seeds - 1)
    return common, float(np.square(residual).sum()) / freedom, freedom


def means_over_seeds(value_MS: Floats, level: float = 0.95) -> list[Mean]:
    """Each method's mean over seeds with an interval for that mean, not for a difference.

    Two seeds of one method alone would leave Student's t with one degree of freedom, 13 standard errors to each side.
    Below :data:`ENOUGH` seeds the variance is therefore the mean of all methods' variances, with Satterthwaite's
    degrees of freedom: from ``S - 1``, where a seed does the same to all methods, to ``M (S - 1)``, where it does
    not.  With two seeds and ten methods 95 % intervals cover 95 % of the time in the latter case and 88 % in the
    former, of which two seeds can hardly be told apart.  Methods that scatter too much to be pooled
    (:func:`pooled_scatter`) keep their own.

    Args:
        value_MS: one score per method and seed; with a single seed the intervals are NaN.
    """
    own = [clustered_mean(values, level=level) for values in value_MS]
    seeds = value_MS.shape[1]
    pooled_M = ~_wild(value_MS) if 1 < seeds < ENOUGH else np.zeros(len(value_MS), dtype=bool)
    members = int(pooled_M.sum())
    if members < 2:
        return own
    common, rest, _ = _squares(value_MS[pooled_M])
    rest *= members - 1
    if not common + rest:
        return own
    freedom = (seeds - 1) * (common + rest) ** 2 / (common**2 + rest**2 / (members - 1))
    stderr = math.sqrt((common + rest) / members / seeds)
    half = student(level, freedom) * stderr
    return [
        mean._replace(stderr=stderr, low=mean.value - half, high=mean.value + half) if pooled else mean
        for mean, pooled in zip(own, pooled_M)
    ]


def _wild(value_MS: Floats) -> NDArray[np.bool_]:
    """Which methods scatter too much to be pooled; of three, one cannot be told to be the odd one."""
    if len(value_MS) < 4:
        return np.zeros(len(value_MS), dtype=bool)
    variance_M = (value_MS - np.median(value_MS, axis=0)).var(axis=1, ddof=1)
    wild: NDArray[np.bool_] = variance_M > _wild_ratio(*value_MS.shape) * np.median(variance_M)
    return wild


@lru_cache
def _wild_ratio(methods: int, seeds: int) -> float:
    """The largest variance over the median one that :data:`WILD` of all grids of equal methods stay below."""
    value_GMS = np.random.default_rng(0).normal(size=(EQUAL_GRIDS, methods, seeds))
    variance_GM = (value_GMS - np.median(value_GMS, axis=1, keepdims=True)).var(axis=2, ddof=1)
    return float(np.quantile(variance_GM.max(axis=1) / np.median(variance_GM, axis=1), WILD))


def seed_error(per_seed_S: Floats, pool: Scatter | None) -> Scatter:
    """Standard error of a mean paired difference that is due to seeds, and its degrees of freedom (0: unknown).

    The pair's own scatter is used where it is larger than that of the pool, so that a pair of wilder methods gains
    nothing from calm ones.

    Args:
        per_seed_S: the difference with each seed.
    """
    seeds = len(per_seed_S)
    own = float(per_seed_S.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    if pool is None:
        return Scatter(own, seeds - 1)
    return Scatter(max(own, pool.sigma * math.sqrt(2 / seeds)), pool.freedom)
