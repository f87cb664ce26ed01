"""What serving would have to move: how well the next experts can be foretold from the present ones (arXiv 2510.05497).

Heat maps are conditional probabilities: ``H[i, j]`` that expert j is among the next choices when i is among the
present ones.  *Next* is the next layer for the same token, or the same layer for the next token.  Skewed loads alone
make experts seem foretellable, so every number has the one of popularity beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.analysis.counts import Choices, pairs, split
from libmoe.analysis.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def across_tokens(trace: Trace, layers: Sequence[int] | None = None) -> dict[int, tuple[Ints, Ints]]:
    """By layer: pairs of an expert of a token and one of the next token of its sequence, and how many chose each.

    Returns:
        ``next_NN`` and ``from_N``; ``next_NN / from_N`` is the heat map.
    """
    found: dict[int, tuple[Ints, Ints]] = {}
    last: dict[int, Choices] = {}
    for piece in trace.pieces(["sequence", "position"], layers=layers):
        for layer, part in split(piece):
            if layer in last:
                part = _joined(last[layer], part)
            order = np.lexsort((part.row["position"], part.row["sequence"]))
            sequence, position = part.row["sequence"][order], part.row["position"][order]
            follows = (sequence[1:] == sequence[:-1]) & (position[1:] == position[:-1] + 1)
            earlier, later = order[:-1][follows], order[1:][follows]
            size = trace.num_experts(layer)
            next_NN, from_N = found.setdefault(
                layer, (np.zeros((size, size), np.int64), np.zeros(size, np.int64))
            )
            next_NN += pairs(part.expert_RK[earlier], part.expert_RK[later], size, size)
            chosen = part.expert_RK[earlier]
            from_N += np.bincount(chosen[chosen >= 0], minlength=size)
            # A piece may end within a sequence: the last token of each goes into the next round.
            ends = np.r_[sequence[1:] != sequence[:-1], [True]] if len(order) else np.zeros(0, bool)
            last[layer] = _rows(part, order[ends])
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


def _joined(first: Choices, second: Choices) -> Choices:
    width = max(first.expert_RK.shape[1], second.expert_RK.shape[1])

    def padded(part: Choices) -> Ints:
        return np.pad(part.expert_RK, ((0, 0), (0, width - part.expert_RK.shape[1])), constant_values=-1)

    row = {name: np.concatenate([first.row[name], second.row[name]]) for name in ("sequence", "position")}
    uid = np.concatenate([first.uid_R, second.uid_R])
    nothing = np.zeros((len(uid), 0))
    count = np.concatenate([first.count_R, second.count_R])
    return Choices(
        uid, count, np.concatenate([padded(first), padded(second)]), nothing, nothing.astype(bool), row
    )


def _rows(part: Choices, rows: Ints) -> Choices:
    row = {name: part.row[name][rows] for name in ("sequence", "position")}
    nothing = np.zeros((len(rows), 0))
    return Choices(
        part.uid_R[rows], part.count_R[rows], part.expert_RK[rows], nothing, nothing.astype(bool), row
    )
