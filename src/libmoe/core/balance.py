"""How evenly experts are used: numbers of the load of one layer that training and analysis share.

``load_N`` counts the assignments of each of N experts (of tokens, or mass for soft plans); any scale will do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import DataError

DEAD_SHARE = 0.01
"""An expert with less than this part of a fair share counts as dead."""


def shares(load_N: ArrayLike) -> NDArray[np.float64]:
    """Share of each expert in all assignments; sums to 1, or all are 0 where nothing was assigned.

    Raises:
        DataError: there is no expert, or an assignment is negative.
    """
    load = np.asarray(load_N, dtype=np.float64)
    if load.ndim != 1 or not load.size or not (load >= 0).all():
        raise DataError(f"load of shape {load.shape}: must be counts for each expert, none negative")
    share_N: NDArray[np.float64] = load / max(load.sum(), 1e-30)
    return share_N


def surprise(share: ArrayLike) -> NDArray[np.float64]:
    """``-p ln p`` of each share, 0 where p is 0: what it adds to an entropy in nats."""
    known = np.asarray(share, dtype=np.float64)
    terms: NDArray[np.float64] = -known * np.log(np.where(known > 0, known, 1.0))
    return terms


def entropy(load_N: ArrayLike) -> float:
    """Entropy of the load in nats: ln N when all experts are used alike, 0 when one is used alone, or none."""
    return max(0.0, float(surprise(shares(load_N)).sum()))  # a negative zero is a zero


def normalised_entropy(load_N: ArrayLike) -> float:
    """Entropy over its maximum ln N; 1 is uniform.  A single expert counts as uniform."""
    size = np.size(load_N)
    return entropy(load_N) / float(np.log(size)) if size > 1 else 1.0


def max_violation(load_N: ArrayLike) -> float:
    """MaxVio: how far the busiest expert exceeds the fair share, ``max / mean - 1`` (arXiv 2408.15664 §2.3).

    0 for uniform load, N - 1 for a single expert, -1 where nothing was assigned.
    """
    share_N = shares(load_N)
    return float(share_N.max() * len(share_N) - 1)


def dead(load_N: ArrayLike, below: float = DEAD_SHARE) -> list[int]:
    """Experts with less than ``below`` of a fair share; all of them where nothing was assigned."""
    share_N = shares(load_N)
    return np.flatnonzero(share_N < below / len(share_N)).tolist()
