"""What a comparison could have seen."""

from __future__ import annotations

import math

from libmoe.stats.means import student


def detectable_difference(stderr: float, freedom: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided t test finds with probability ``power``.

    It is the non-centrality at which t exceeds its critical value with that probability, in standard errors; for many
    degrees of freedom the sum of two normal quantiles (Miller 2024, arXiv 2411.00640).

    Args:
        stderr: of the estimated difference.
        freedom: its degrees of freedom, e.g. clusters - 1, or seeds - 1.

    Returns:
        The size of the difference; NaN where there is no scatter to judge by.
    """
    from scipy.special import nctdtrinc

    if not stderr > 0 or not freedom > 0:
        return math.nan
    return stderr * float(nctdtrinc(freedom, 1 - power, student(level, freedom)))
