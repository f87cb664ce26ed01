"""The mean of scores of which some belong together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from libmoe.stats.clusters import numbered


class Mean(NamedTuple):
    """A mean with its standard error and 95 % interval; NaN where one cluster leaves nothing to compare."""

    value: float
    stderr: float
    low: float
    high: float
    items: int
    clusters: int


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Mean:
    """Mean of ``values``; items of one cluster (questions on one passage, one image) may depend on each other.

    The standard error is the cluster-robust one of a mean, ``sqrt(G / (G - 1) sum_g (sum_{i in g} r_i)^2) / n`` with
    residuals r and G clusters (Liang & Zeger 1986; for evaluations Miller 2024, arXiv 2411.00640, equation 4, without
    the small-sample factor).  With every item its own cluster it is the usual ``s / sqrt(n)``.  The interval uses
    Student's t with G - 1 degrees of freedom.

    Args:
        values: one score per item.
        clusters: the cluster of each item; ``None``: each item is its own.

    Raises:
        ValueError: no values, or not one cluster per value.
    """
    x = np.asarray(values, dtype=np.float64)
    if not x.size:
        raise ValueError("no values to average")
    sums = np.bincount(numbered(clusters, x.size), weights=x - x.mean())
    groups = len(sums)
    mean = float(x.mean())
    if groups < 2:
        return Mean(mean, math.nan, math.nan, math.nan, x.size, groups)
    stderr = math.sqrt(groups / (groups - 1) * float(np.square(sums).sum())) / x.size
    half = student(level, groups - 1) * stderr
    return Mean(mean, stderr, mean - half, mean + half, x.size, groups)


def student(level: float, freedom: float) -> float:
    """How many standard errors a two-sided interval of this level reaches to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
