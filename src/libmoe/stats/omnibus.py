"""Do any of several methods differ, over other seeds and other text?  One test for all of them together."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.crossed import checked, joined
from libmoe.stats.runs import Units
from libmoe.stats.seeds import Scatter, pooled_scatter

Floats = NDArray[np.float64]


class CrossedF(NamedTuple):
    """The hypothesis that all methods have the same mean.

    Attributes:
        f, p_value: NaN where there is but one seed and one cluster.
        freedom: degrees of freedom of numerator and denominator.
    """

    f: float
    p_value: float
    freedom: tuple[int, float]


def crossed_f(value_MSU: Floats, units: Units | None = None, *, pool: Scatter | None = None) -> CrossedF:
    """Compare the scatter of M methods' means with what seeds and text alone would scatter them by.

    With ``2 s^2 / S + t^2`` the variance of a difference of two means (s the pooled scatter of seeds, t^2 the squared
    standard error over clusters of units, from what methods do not share), F is the variance of the means over half
    of it, with ``M - 1`` and Satterthwaite's degrees of freedom.  Friedman's test over seeds asks about *this* text,
    over domains about *these* runs; this one asks about neither, and counts what varies by seed and unit twice, which
    errs on the side of finding nothing.

    Args:
        value_MSU: scores of M methods with S seeds on U units.
        units: weights, clusters and strata; ``None``: every unit by itself, all alike.
        pool: seed-to-seed scatter of one run, from more methods than these; ``None``: their own.

    Raises:
        DataError: fewer than two methods, or values that are not finite.

    Sources: Fisher's analysis of variance; Satterthwaite 1946 for the denominator.
    """
    from scipy.special import fdtrc

    methods, seeds = value_MSU.shape[:2]
    if methods < 2:
        raise DataError(f"{methods} method: it takes two to differ")
    units = checked(value_MSU.reshape(methods * seeds, -1), units)
    mean_M = units.mean(value_MSU).mean(axis=1)
    if pool is None:
        pool = pooled_scatter(units.mean(value_MSU)) if seeds > 1 else Scatter(0.0, 0)
    error = Scatter(pool.sigma / math.sqrt(seeds), pool.freedom)
    taste_MU = value_MSU.mean(axis=1) - value_MSU.mean(axis=(0, 1))
    text = float(units.squares(taste_MU).sum()) / (methods - 1)
    stderr, freedom = joined(error, text, (methods - 1) * units.freedom)
    if not freedom:
        return CrossedF(math.nan, math.nan, (methods - 1, 0.0))
    if not stderr:
        differ = bool(np.ptp(mean_M))
        return CrossedF(math.inf if differ else 0.0, float(not differ), (methods - 1, freedom))
    f = float(mean_M.var(ddof=1)) / stderr**2
    return CrossedF(f, float(fdtrc(methods - 1, freedom, f)), (methods - 1, freedom))
