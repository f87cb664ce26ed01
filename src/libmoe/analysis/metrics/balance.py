"""How evenly experts are used: functions of the load of one layer.

``load_N`` counts the assignments of each of N experts (of tokens, or mass for soft plans); any scale will do.  What
training logs as well is defined in :mod:`libmoe.core.balance`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from libmoe.core.balance import (
    dead,
    entropy,
    max_violation,
    normalised_entropy,
    shares,
)


def perplexity(load_N: ArrayLike) -> float:
    """``exp(entropy)``: how many equally used experts would have this entropy."""
    return float(np.exp(entropy(load_N)))


def relative_perplexity(load_N: ArrayLike) -> float:
    """Perplexity over N: the share of the experts that is in use."""
    return perplexity(load_N) / np.size(load_N)


def coefficient_of_variation(load_N: ArrayLike) -> float:
    """Standard deviation over mean: 0 for uniform load, sqrt(N - 1) for a single expert (arXiv 1701.06538 eq. 7)."""
    share_N = shares(load_N)
    return float(share_N.std() * len(share_N))


def gini(load_N: ArrayLike) -> float:
    """Gini coefficient: 0 for uniform load, 1 - 1/N for a single expert."""
    share_N = np.sort(shares(load_N))
    size = len(share_N)
    return float((2 * np.arange(1, size + 1) - size - 1) @ share_N / size)


__all__ = [
    "coefficient_of_variation",
    "dead",
    "entropy",
    "gini",
    "max_violation",
    "normalised_entropy",
    "perplexity",
    "relative_perplexity",
    "shares",
]
