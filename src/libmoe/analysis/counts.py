"""Everything that metrics need from a trace, added up in one pass whose memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.trace import Piece, Trace
from libmoe.core.balance import surprise

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BINS = 50
"""Bins of the histograms of margin and of normalised entropy, over [0, 1]."""


@dataclass
class LayerCounts:
    """One MoE layer with N experts over the tokens of a trace.

    Attributes:
        tokens: how many tokens it saw.
        load_N: how often each expert was chosen, before capacity.
        dropped_N: how often capacity then dropped it.
        weight_N: sum of the weights of its outputs.
        first_N: how often it was a token's heaviest expert.
        experts_K: how many tokens had 0, 1, 2, ... experts.
        coactive_NN: how many tokens chose both; the diagonal is ``load_N``.
        next_NM: pairs of an expert of this layer and one of the next for the same token; ``None`` in the last layer.
        by: by column of the tokens, ``[G, N]`` assignments for each of its values.
        entropy_B, margin_B: histograms of the tokens' normalised entropy (in units of ln N) and margin.
        entropy_sum, margin_sum, weight_entropy_sum, scored: sums over tokens in nats, and how many had scores; the last
            entropy is that of a token's weights, made to sum to 1.
    """

    num_experts: int
    tokens: int = 0
    load_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    weight_N: Floats = field(default_factory=lambda: np.zeros(0))
    first_N: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    experts_K: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    coactive_NN: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    next_NM: Ints | None = None
    by: dict[str, Ints] = field(default_factory=dict)
    entropy_B: Ints = field(default_factory=lambda: np.zeros(BINS, np.int64))
    margin_B: Ints = field(default_factory=lambda: np.zeros(BINS, np.int64))
    entropy_sum: float = 0.0
    margin_sum: float = 0.0
    weight_entropy_sum: float = 0.0
    scored: int = 0

    @property
    def served_N(self) -> Ints:
        """How often each expert was chosen and then ran: its effective load (arXiv 2105.15082 §3.1)."""
        return self.load_N - self.dropped_N

    def __post_init__(self) -> None:
        n = self.num_experts
        self.load_N, self.dropped_N, self.first_N = (np.zeros(n, np.int64) for _ in range(3))
        self.weight_N, self.coactive_NN = np.zeros(n), np.zeros((n, n), np.int64)


@dataclass
class Counts:
    """What one pass over a trace adds up: ``layers`` by index; ``values`` of each grouping column."""

    layers: dict[int, LayerCounts]
    values: dict[str, Ints]


def count(trace: Trace, by: Sequence[str] = (), *, layers: Sequence[int] | None = None) -> Counts:
    """Count a trace.

    Args:
        by: columns of the tokens to group by (``domain``, ``token``, ``position``, ...).
        layers: only these.

    Raises:
        ConfigError: an unknown column.
    """
    chosen = trace.layers if layers is None else sorted(layers)
    values = {name: np.unique(trace.tokens([name])[name]) for name in by}
    found = Counts({i: LayerCounts(trace.num_experts(i)) for i in chosen}, values)
    for layer, counts in found.layers.items():
        counts.by = {name: np.zeros((len(v), counts.num_experts), np.int64) for name, v in values.items()}
        after = _following(chosen, layer)
        if after is not None:
            counts.next_NM = np.zeros((counts.num_experts, trace.num_experts(after)), np.int64)
    joins = {layer: Join() for layer in chosen}
    for piece in trace.pieces(by, layers=chosen):
        for layer, part in split(piece):
            _add(found.layers[layer], part, values)
            _add_transitions(found, joins, chosen, layer, part)
    return found


@dataclass
class Choices:
    """Decisions of one layer for R tokens: ``expert_RK`` heaviest first and filled up with -1, and their weights."""

    uid_R: Ints
    count_R: Ints
    expert_RK: NDArray[np.int64]
    weight_RK: Floats
    kept_RK: NDArray[np.bool_]
    row: dict[str, NDArray[Any]]


def split(piece: Piece) -> Iterator[tuple[int, Choices]]:
    """A piece of a trace, layer by layer, as rectangles."""
    count_R = np.diff(piece.start_R)
    most = int(count_R.max(initial=0))
    inside_RK = np.arange(most) < count_R[:, None]
    expert_RK, weight_RK = np.full(inside_RK.shape, -1, np.int64), np.zeros(inside_RK.shape)
    kept_RK = np.zeros(inside_RK.shape, bool)
    expert_RK[inside_RK], weight_RK[inside_RK], kept_RK[inside_RK] = (
        piece.expert_A,
        piece.weight_A,
        piece.kept_A,
    )
    for layer in np.unique(piece.row["layer"]):
        mine = piece.row["layer"] == layer
        row = {name: column[mine] for name, column in piece.row.items()}
        widest = int(count_R[mine].max(initial=0))
        yield (
            int(layer),
            Choices(
                row["uid"],
                count_R[mine],
                expert_RK[mine, :widest],
                weight_RK[mine, :widest],
                kept_RK[mine, :widest],
                row,
            ),
        )


def _add(counts: LayerCounts, part: Choices, values: dict[str, Ints]) -> None:
    n = counts.num_experts
    chosen_RK = part.expert_RK >= 0
    expert_A = part.expert_RK[chosen_RK]
    counts.tokens += len(part.uid_R)
    counts.load_N += np.bincount(expert_A, minlength=n)
    counts.dropped_N += np.bincount(part.expert_RK[chosen_RK & ~part.kept_RK], minlength=n)
    counts.weight_N += np.bincount(expert_A, weights=part.weight_RK[chosen_RK], minlength=n)
    if part.expert_RK.shape[1]:
        counts.first_N += np.bincount(part.expert_RK[chosen_RK[:, 0], 0], minlength=n)
    experts_K = np.bincount(part.count_R, minlength=len(counts.experts_K))
    experts_K[: len(counts.experts_K)] += counts.experts_K
    counts.experts_K = experts_K
    counts.coactive_NN += pairs(part.expert_RK, part.expert_RK, n, n)
    for name, known in values.items():
        place_R = np.searchsorted(known, part.row[name])
        flat_A = np.repeat(place_R, chosen_RK.sum(1)) * n + expert_A
        counts.by[name] += np.bincount(flat_A, minlength=len(known) * n).reshape(-1, n)
    _add_uncertainty(counts, part)


def _add_uncertainty(counts: LayerCounts, part: Choices) -> None:
    share_RK = part.weight_RK / np.maximum(part.weight_RK.sum(1, keepdims=True), 1e-30)
    counts.weight_entropy_sum += float(surprise(share_RK).sum())
    entropy_R, margin_R = (part.row[name].astype(np.float64) for name in ("entropy", "margin"))
    known_R = np.isfinite(entropy_R)
    counts.scored += int(known_R.sum())
    counts.entropy_sum += float(entropy_R[known_R].sum())
    counts.margin_sum += float(margin_R[known_R].sum())
    uniform = np.log(max(counts.num_experts, 2))
    counts.entropy_B += _histogram(entropy_R[known_R] / uniform)
    counts.margin_B += _histogram(margin_R[known_R])


def _histogram(share_R: Floats) -> Ints:
    return np.bincount(np.clip((share_R * BINS).astype(np.int64), 0, BINS - 1), minlength=BINS)


def pairs(left_RK: Ints, right_RJ: Ints, num_left: int, num_right: int) -> Ints:
    """How often an expert of the left and one of the right were chosen by the same row: ``[N, M]``; -1 is nobody."""
    total = np.zeros(num_left * num_right, np.int64)
    for i in range(left_RK.shape[1]):
        for j in range(right_RJ.shape[1]):
            both_R = (left_RK[:, i] >= 0) & (right_RJ[:, j] >= 0)
            flat = left_RK[both_R, i] * num_right + right_RJ[both_R, j]
            total += np.bincount(flat, minlength=len(total))
    return total.reshape(num_left, num_right)


def _following(layers: Sequence[int], layer: int) -> int | None:
    place = list(layers).index(layer) + 1
    return layers[place] if place < len(layers) else None


class Join:
    """Matches rows of the same tokens from two sides, as they come; what has come on one side only is held back."""

    def __init__(self) -> None:
        self.waiting: tuple[list[Choices], list[Choices]] = ([], [])

    def add(self, side: int, part: Choices) -> Iterator[tuple[Ints, Ints]]:
        """Choices of tokens that both sides now have."""
        other = self.waiting[1 - side]
        rest = part.uid_R
        for place, there in enumerate(list(other)):
            common, mine, theirs = np.intersect1d(
                part.uid_R, there.uid_R, assume_unique=False, return_indices=True
            )
            if not len(common):
                continue
            found = part.expert_RK[mine], there.expert_RK[theirs]
            yield found if side == 0 else (found[1], found[0])
            rest = np.setdiff1d(rest, common, assume_unique=False)
            left = ~np.isin(there.uid_R, common)
            other[place] = _only(there, left)
        other[:] = [part for part in other if len(part.uid_R)]
        if len(rest):
            self.waiting[side].append(_only(part, np.isin(part.uid_R, rest)))


def _only(part: Choices, rows: NDArray[np.bool_]) -> Choices:
    return Choices(
        part.uid_R[rows],
        part.count_R[rows],
        part.expert_RK[rows],
        part.weight_RK[rows],
        part.kept_RK[rows],
        {},
    )


def _add_transitions(
    found: Counts, joins: dict[int, Join], layers: Sequence[int], layer: int, part: Choices
) -> None:
    """Both as the earlier layer of one pair and as the later one of another."""
    place = list(layers).index(layer)
    for first, side in ((layer, 0), (layers[place - 1] if place else layer, 1)):
        counts = found.layers[first]
        if counts.next_NM is None or (side == 1 and first == layer):
            continue
        for left_RK, right_RJ in joins[first].add(side, part):
            counts.next_NM += pairs(left_RK, right_RJ, *counts.next_NM.shape)
