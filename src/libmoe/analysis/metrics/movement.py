"""What serving would have to move: how well the next experts can be foretold from the present ones (arXiv 2510.05497).

Heat maps are conditional probabilities: ``H[i, j]`` that expert j is among the next choices when i is among the
present ones.  *Next* is the next layer for the same token, or the same layer for the next token.  Skewed loads alone
make experts seem foretellable, so every number has the one of popularity beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.analysis.counts import pairs, split
from libmoe.analysis.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Rows(NamedTuple):
    """Tokens of one layer: where they stand, and their experts."""

    sequence_R: Ints
    position_R: Ints
    expert_RK: Ints

    def before(self, later: _Rows) -> _Rows:
        """Both, as one."""
        width = max(self.expert_RK.shape[1], later.expert_RK.shape[1])
        wide = [
            np.pad(rows.expert_RK, ((0, 0), (0, width - rows.expert_RK.shape[1])), constant_values=-1)
            for rows in (self, later)
        ]
        return _Rows(
            np.concatenate([self.sequence_R, later.sequence_R]),
            np.concatenate([self.position_R, later.position_R]),
            np.concatenate(wide),
        )

    def take(self, rows: Ints) -> _Rows:
        return _Rows(*(column[rows] for column in self))


def across_tokens(trace: Trace, layers: Sequence[int] | None = None) -> dict[int, tuple[Ints, Ints]]:
    """By layer: pairs of an expert of a token and one of the next token of its sequence, and how many chose each.

    Returns:
        ``next_NN`` and ``from_N``; ``next_NN / from_N`` is the heat map.
    """
    found: dict[int, tuple[Ints, Ints]] = {}
    last: dict[int, _Rows] = {}  # a piece may end within a sequence: its last token goes into the next round
    for piece in trace.pieces(["sequence", "position"], layers=layers):
        for layer, part in split(piece):
            rows = _Rows(part.row["sequence"], part.row["position"], part.expert_RK)
            rows = last[layer].before(rows) if layer in last else rows
            rows = rows.take(np.lexsort((rows.position_R, rows.sequence_R)))
            same = rows.sequence_R[1:] == rows.sequence_R[:-1]
            follows = np.flatnonzero(same & (rows.position_R[1:] == rows.position_R[:-1] + 1))
            size = trace.num_experts(layer)
            next_NN, from_N = found.setdefault(
                layer, (np.zeros((size, size), np.int64), np.zeros(size, np.int64))
            )
            earlier_RK = rows.expert_RK[follows]
            next_NN += pairs(earlier_RK, rows.expert_RK[follows + 1], size, size)
            from_N += np.bincount(earlier_RK[earlier_RK >= 0], minlength=size)
            last[layer] = rows.take(np.flatnonzero(np.r_[~same, True]))
    return found


def heat_map(next_NM: ArrayLike, from_N: ArrayLike) -> Floats:
    """``P(j next | i now)``; rows sum to the mean number of choices, and are NaN for experts that were never chosen."""
    count = np.asarray(from_N, dtype=np.float64)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        heat: Floats = np.asarray(next_NM, dtype=np.float64) / count
    return heat


def coverage(next_NM: ArrayLike, top: float = 0.2) -> float:
    """Share of the next choices that fall on each row's most frequent ``top`` of the experts.

    ``top`` itself on routing without structure, 1 when the present experts decide the next.
    """
    count = np.asarray(next_NM, dtype=np.float64)
    keep = max(1, round(top * count.shape[1]))
    best = -np.sort(-count, axis=1)[:, :keep].sum()
    return float(best / count.sum()) if count.sum() else float("nan")


def popularity_coverage(next_NM: ArrayLike, top: float = 0.2) -> float:
    """The same for one list of the most frequent experts, whatever the present ones are: what skew alone gives."""
    return coverage(np.asarray(next_NM, dtype=np.float64).sum(0, keepdims=True), top)


def rank_correlation(load_N: ArrayLike, other_N: ArrayLike) -> float:
    """Spearman's correlation of two loads, such as prefill's and decoding's; NaN where one is constant."""
    from scipy.stats import spearmanr

    left, right = np.asarray(load_N, dtype=np.float64), np.asarray(other_N, dtype=np.float64)
    if (left == left[0]).all() or (right == right[0]).all():
        return float("nan")
    return float(spearmanr(left, right).statistic)
