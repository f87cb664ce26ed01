"""How much routing differs between two states of a model on the same tokens: two checkpoints, or two interventions.

``before_RK`` and ``after_RK`` hold the experts of R tokens, heaviest first and filled up with -1.  All functions return
a value for each token, ``[R]``; tokens without experts on both sides did not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.counts import Join, split
from libmoe.analysis.trace import Trace
from libmoe.core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def overlap(before_RK: Ints, after_RK: Ints) -> Floats:
    """Share of the later experts that were chosen before, ``|A ∩ B| / |B|``.

    With the final checkpoint as the later one, its mean over tokens is router saturation (OLMoE, arXiv 2409.02060 §5.1;
    FLAME-MoE, arXiv 2505.20225 §4): 1 for the final checkpoint itself, k/N for routers that agree by chance.
    """
    common_R, _, later_R = _sizes(before_RK, after_RK)
    share: Floats = np.where(
        later_R > 0, common_R / np.maximum(later_R, 1), (before_RK < 0).all(1).astype(float)
    )
    return share


def jaccard(before_RK: Ints, after_RK: Ints) -> Floats:
    """``|A ∩ B| / |A ∪ B|``."""
    common_R, earlier_R, later_R = _sizes(before_RK, after_RK)
    union_R = earlier_R + later_R - common_R
    share: Floats = np.where(union_R > 0, common_R / np.maximum(union_R, 1), 1.0)
    return share


def first_changed(before_RK: Ints, after_RK: Ints) -> Floats:
    """1 where the heaviest expert is another one (the change rate of LibMoE, arXiv 2411.00918 Fig. 4)."""
    return (_first(before_RK) != _first(after_RK)).astype(float)


def set_changed(before_RK: Ints, after_RK: Ints) -> Floats:
    """1 where the set of experts is another one."""
    common_R, earlier_R, later_R = _sizes(before_RK, after_RK)
    return ((common_R < earlier_R) | (common_R < later_R)).astype(float)


def switched(before_RK: Ints, after_RK: Ints) -> Floats:
    """Share of the ranks whose expert is another one (switch fraction); 1 minus it is the position match."""
    width = max(before_RK.shape[1], after_RK.shape[1])
    before, after = _wide(before_RK, width), _wide(after_RK, width)
    used = (before >= 0) | (after >= 0)
    share: Floats = ((before != after) & used).sum(1) / np.maximum(used.sum(1), 1)
    return share


@dataclass
class Change:
    """Means over the tokens of one layer; see the functions of the same names.  ``saturation`` is the mean overlap."""

    tokens: int = 0
    saturation: float = 0.0
    jaccard: float = 0.0
    first_changed: float = 0.0
    set_changed: float = 0.0
    switch_fraction: float = 0.0

    @property
    def position_match(self) -> float:
        return 1.0 - self.switch_fraction


_MEASURES = {
    "saturation": overlap, "jaccard": jaccard, "first_changed": first_changed, "set_changed": set_changed,
    "switch_fraction": switched,
}  # fmt: skip


def compare(before: Trace, after: Trace) -> dict[int, Change]:
    """How routing differs between two traces of the same tokens, by layer; memory does not grow with their length.

    Raises:
        DataError: they are not of the same tokens, or share no layer.
    """
    check_same_tokens(before, after)
    layers = [layer for layer in before.layers if layer in after.layers]
    if not layers:
        raise DataError(f"the traces share no MoE layer: {before.layers} and {after.layers}")
    found = {layer: Change() for layer in layers}
    joins = {layer: Join() for layer in layers}
    # In turns, so that neither side has to wait long for the other in memory.
    for pieces in zip_longest(before.pieces(layers=layers), after.pieces(layers=layers)):
        for side, piece in enumerate(pieces):
            for layer, part in split(piece) if piece is not None else ():
                for earlier_RK, later_RK in joins[layer].add(side, part):
                    _add(found[layer], earlier_RK, later_RK)
    return found


def check_same_tokens(before: Trace, after: Trace) -> None:
    """Raises DataError, naming the first difference, unless both traces are of the same tokens in the same order."""
    left, right = (trace.tokens(["uid", "sequence", "position", "token"]) for trace in (before, after))
    if len(left["uid"]) != len(right["uid"]):
        raise DataError(
            f"the traces have {len(left['uid']):,} and {len(right['uid']):,} tokens; trace the same text"
        )
    for name in left:
        if (places := np.flatnonzero(left[name] != right[name])).size:
            place = int(places[0])
            raise DataError(
                f"the traces are not of the same tokens: {name} of token {place:,} is {left[name][place]} in one and "
                f"{right[name][place]} in the other; trace the same text with the same settings"
            )


def _add(change: Change, before_RK: Ints, after_RK: Ints) -> None:
    total = change.tokens + len(before_RK)
    for name, measure in _MEASURES.items():
        mean = getattr(change, name)
        setattr(
            change, name, mean + (float(measure(before_RK, after_RK).sum()) - mean * len(before_RK)) / total
        )
    change.tokens = total


def _sizes(before_RK: Ints, after_RK: Ints) -> tuple[Ints, Ints, Ints]:
    """Sizes of the intersection and of both sets."""
    same_RKJ = (before_RK[:, :, None] == after_RK[:, None, :]) & (before_RK >= 0)[:, :, None]
    return same_RKJ.any(2).sum(1), (before_RK >= 0).sum(1), (after_RK >= 0).sum(1)


def _first(expert_RK: Ints) -> Ints:
    return expert_RK[:, 0] if expert_RK.shape[1] else np.full(len(expert_RK), -1)


def _wide(expert_RK: Ints, width: int) -> Ints:
    return np.pad(expert_RK, ((0, 0), (0, width - expert_RK.shape[1])), constant_values=-1)
