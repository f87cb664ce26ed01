"""Directions drawn uniformly: how often they come close to a given one."""

from __future__ import annotations

import math

from libmoe.core.errors import ConfigError


def cap_probability(cosine: float, dim: int) -> float:
    """Probability that ``|cos(x, w)| >= cosine`` for a uniformly random direction x in ``dim`` dimensions.

    ``1 - I_{c^2}(1/2, (dim - 1) / 2)``, with I the regularised incomplete beta function; ``erfc(c sqrt(dim / 2))`` in
    many dimensions.

    Raises:
        ConfigError: a cosine outside 0..1, or fewer than 2 dimensions.
    """
    from scipy.special import betainc

    if not 0 <= cosine <= 1:
        raise ConfigError(f"cosine={cosine} must be between 0 and 1")
    if dim < 2:
        raise ConfigError(f"dim={dim} must be at least 2")
    return float(1 - betainc(0.5, (dim - 1) / 2, math.pow(cosine, 2)))
