"""How much the score of one method varies from seed to seed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError


class Scatter(NamedTuple):
    """Standard deviation of one run's score between seeds, and the degrees of freedom it was estimated with."""

    sigma: float
    freedom: int


def pooled_scatter(value_MS: NDArray[np.float64]) -> Scatter:
    """Pool the scatter of seeds over methods, what a seed does to all of them alike taken out.

    Two or three seeds of one method say next to nothing of its scatter; those of ten methods together do, if all
    scatter about equally.  It is the residual of the randomised-block analysis of variance with
    ``(M - 1)(S - 1)`` degrees of freedom.

    Args:
        value_MS: one score per method and seed.

    Raises:
        DataError: fewer than two methods or two seeds.
    """
    methods, seeds = value_MS.shape
    if methods < 2 or seeds < 2:
        raise DataError(f"{methods} methods x {seeds} seeds tell nothing of scatter; it takes two of each")
    residual = value_MS - value_MS.mean(axis=0) - value_MS.mean(axis=1, keepdims=True) + value_MS.mean()
    freedom = (methods - 1) * (seeds - 1)
    return Scatter(math.sqrt(float(np.square(residual).sum()) / freedom), freedom)


def seed_error(per_seed_S: NDArray[np.float64], pool: Scatter | None) -> Scatter:
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
