"""How evenly experts are used: functions of the load of one layer.

``load_N`` counts the assignments of each of N experts (of tokens, or mass for soft plans); any scale will do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import DataError

DEAD_SHARE = 0.01
"""An expert with less than this part of a fair share counts as dead (the alarm of training uses the same)."""


def shares(load_N: ArrayLike) -> NDArray[np.float64]:
    """Share of each expert in all assignments; sums to 1.

    Raises:
        DataError: nothing was assigned, or an assignment is negative.
    """
    load = np.asarray(load_N, dtype=np.float64)
    if load.ndim != 1 or not load.size or not load.sum() > 0 or (load < 0).any():
        raise DataError(f"load of shape {load.shape}: must be counts of experts that were used")
    share_N: NDArray[np.float64] = load / load.sum()
    return share_N


def entropy(load_N: ArrayLike) -> float:
    """Entropy of the load in nats: ln N when all experts are used alike, 0 when one is used alone."""
    share_N = shares(load_N)
    used = share_N[share_N > 0]
    return float(-(used * np.log(used)).sum())


def normalised_entropy(load_N: ArrayLike) -> float:
    """Entropy over its maximum ln N; 1 is uniform.  A single expert counts as uniform."""
    size = np.size(load_N)
    return entropy(load_N) / np.log(size) if size > 1 else 1.0


def perplexity(load_N: ArrayLike) -> float:
    """``exp(entropy)``: how many equally used experts would have this entropy."""
    return float(np.exp(entropy(load_N)))


def relative_perplexity(load_N: ArrayLike) -> float:
    """Perplexity over N: the share of the experts that is in use."""
    return perplexity(load_N) / np.size(load_N)


def max_violation(load_N: ArrayLike) -> float:
    """MaxVio: how far the busiest expert exceeds the fair share, ``max / mean - 1`` (arXiv 2408.15664 §2.3)."""
    share_N = shares(load_N)
    return float(share_N.max() * len(share_N) - 1)


def coefficient_of_variation(load_N: ArrayLike) -> float:
    """Standard deviation over mean: 0 for uniform load, sqrt(N - 1) for a single expert (arXiv 1701.06538 eq. 7)."""
    share_N = shares(load_N)
    return float(share_N.std() * len(share_N))


def gini(load_N: ArrayLike) -> float:
    """Gini coefficient: 0 for uniform load, 1 - 1/N for a single expert."""
    share_N = np.sort(shares(load_N))
    size = len(share_N)
    return float((2 * np.arange(1, size + 1) - size - 1) @ share_N / size)


def dead(load_N: ArrayLike, below: float = DEAD_SHARE) -> list[int]:
    """Experts with less than ``below`` of a fair share."""
    share_N = shares(load_N)
    return np.flatnonzero(share_N < below / len(share_N)).tolist()
