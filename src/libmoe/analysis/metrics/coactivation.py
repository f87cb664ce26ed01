"""Which experts work together, and which follow each other: functions of pair counts.

``coactive_NN[i, j]`` counts tokens that chose both; its diagonal is the load.  ``next_NM`` counts pairs of an expert of
one layer and one of the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.balance import surprise

Floats = NDArray[np.float64]


def conditional(coactive_NN: ArrayLike) -> Floats:
    """``P(j | i)``: share of the tokens of expert i that also chose j; diagonal 0 (FLAME-MoE, arXiv 2505.20225 §4).

    Off the diagonal (k - 1) / (N - 1) when experts are chosen independently and alike.  Rows of unused experts are 0.
    """
    count = np.asarray(coactive_NN, dtype=np.float64)
    share: Floats = count / np.maximum(np.diag(count), 1)[:, None]
    np.fill_diagonal(share, 0.0)
    return share


def lift(coactive_NN: ArrayLike, tokens: int) -> Floats:
    """How much more often two experts meet than if they were independent; 1 is independent, NaN on the diagonal.

    Choosing k of N without replacement alone makes pairs meet a little less than that.
    """
    count = np.asarray(coactive_NN, dtype=np.float64)
    load = np.diag(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = count * tokens / np.outer(load, load)
    np.fill_diagonal(value, np.nan)
    return value


def communities(coactive_NN: ArrayLike, tokens: int) -> list[list[int]]:
    """Groups of experts that meet more often than by chance, largest first; every expert is in one.

    Average-linkage clustering of how rarely two experts meet, cut where pairs are as frequent as by chance (lift 1).
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    value = np.nan_to_num(lift(coactive_NN, tokens), nan=0.0, posinf=0.0)
    if len(value) < 2:
        return [[i] for i in range(len(value))]
    distance = 1 / (1 + value)  # 1/2 at lift 1
    np.fill_diagonal(distance, 0.0)
    label = fcluster(linkage(squareform((distance + distance.T) / 2), "average"), 0.5 - 1e-9, "distance")
    found = [np.flatnonzero(label == name).tolist() for name in np.unique(label)]
    return sorted(found, key=lambda group: (-len(group), group))


def transition(next_NM: ArrayLike) -> Floats:
    """Share of the next layer's choices on each of its experts, given one of this; rows sum to 1 (0 if unused)."""
    count = np.asarray(next_NM, dtype=np.float64)
    share: Floats = count / np.maximum(count.sum(1, keepdims=True), 1)
    return share


def conditional_entropy(next_NM: ArrayLike) -> float:
    """Entropy in nats of the next layer's expert once this layer's is known; ``H(next)`` when they are independent."""
    share, weight = transition(next_NM), np.asarray(next_NM, dtype=np.float64).sum(1)
    return float((surprise(share).sum(1) * weight).sum() / max(weight.sum(), 1))
