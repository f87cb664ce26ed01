"""Experts and token ids: who reads what, and how early in training that is settled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.analysis.metrics.information import jensen_shannon

Floats = NDArray[np.float64]


def token_specialisation(count_VN: ArrayLike, occurrences_V: ArrayLike) -> Floats:
    """``S(e, v)``: share of the occurrences of id v that chose expert e, ``[V, N]`` (FLAME-MoE, arXiv 2505.20225 §4).

    Args:
        count_VN: assignments by token id and expert.
        occurrences_V: how often each id occurs; ids that never do are NaN.
    """
    seen = np.asarray(occurrences_V, dtype=np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        share: Floats = np.where(seen > 0, np.asarray(count_VN, dtype=np.float64) / seen, np.nan)
    return share


class TopToken(NamedTuple):
    """A token id that an expert takes most of: its place among the ids, the share, and how often it occurs."""

    place: int
    share: float
    occurrences: int


def top_tokens(
    count_VN: ArrayLike, occurrences_V: ArrayLike, top: int = 10, least: int = 8
) -> list[list[TopToken]]:
    """For each expert the ``top`` ids of which it takes the largest share, among those that occur ``least`` times.

    Rare ids are left out, because one of one is all of it.
    """
    share = token_specialisation(count_VN, occurrences_V)
    seen = np.asarray(occurrences_V)
    share = np.where((seen >= least)[:, None], share, -1.0)
    found = []
    for e in range(share.shape[1]):
        order = np.lexsort((-seen, -share[:, e]))[:top]
        found.append([TopToken(int(v), float(share[v, e]), int(seen[v])) for v in order if share[v, e] > 0])
    return found


def specialisation(count_VN: ArrayLike, occurrences_V: ArrayLike, top: int = 10, least: int = 8) -> float:
    """Mean share of the ``top`` ids of each expert, FLAME-MoE's curve over training; NaN where ids are too rare."""
    shares = [t.share for tokens in top_tokens(count_VN, occurrences_V, top, least) for t in tokens]
    return float(np.mean(shares)) if shares else float("nan")


def js_similarity(left_VN: ArrayLike, right_VN: ArrayLike, least: int = 8) -> float:
    """How alike two checkpoints send token ids to experts: 1 - Jensen-Shannon divergence in bits, mean over ids.

    Ids are weighted by how often they occur; those with fewer than ``least`` assignments on either side are left out
    (OpenMoE, arXiv 2402.01739 §4, early routing learning).  1 for equal routing, 0 for experts in common with none.
    """
    left, right = np.asarray(left_VN, dtype=np.float64), np.asarray(right_VN, dtype=np.float64)
    common = (left.sum(1) >= least) & (right.sum(1) >= least)
    if not common.any():
        return float("nan")
    left, right = left[common], right[common]
    divergence = jensen_shannon(left, right) / np.log(2)
    return float(1 - np.average(divergence, weights=left.sum(1) + right.sum(1)))
