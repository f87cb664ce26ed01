"""How much the score of one method varies from seed to seed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError

Floats = NDArray[np.float64]

WILD = 0.99
"""A method is kept out of the pool when equal methods would hardly ever scatter so unequally: beyond this quantile."""
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
    value_MS = value_MS[~_wild(value_MS)]
    residual = value_MS - value_MS.mean(axis=0) - value_MS.mean(axis=1, keepdims=True) + value_MS.mean()
    freedom = (len(value_MS) - 1) * (seeds - 1)
    return Scatter(math.sqrt(float(np.square(residual).sum()) / freedom), freedom)


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
