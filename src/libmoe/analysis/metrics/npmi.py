"""Which experts go with which tokens: normalised pointwise mutual information (arXiv 2505.14681 §3).

There the tokens are ``<think>`` and ``</think>`` of a reasoning model, and the best pairs of (layer, expert) are its
"cognitive experts".  Any set of marker tokens will do; compare with other special tokens, for experts may serve special
tokens as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.counts import split
from libmoe.analysis.trace import Trace
from libmoe.core.errors import ConfigError

Floats = NDArray[np.float64]


def npmi(joint: Floats, expert: Floats, marker: Floats, positions: float) -> Floats:
    """``log(p(e,w) / (p(e) p(w))) / -log p(e,w)`` from counts that broadcast.

    1 if one never comes without the other, 0 if they are independent, -1 if they never meet; NaN where the expert or
    the marker never occurs.

    The limit of a pair that fills every position is 1.
    """
    joint, expert, marker = np.broadcast_arrays(joint / positions, expert / positions, marker / positions)
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = np.log(joint / (expert * marker)) / -np.log(joint)
    value = np.where(joint >= 1, 1.0, value)
    value = np.where(joint == 0, -1.0, value)
    return np.where((expert == 0) | (marker == 0), np.nan, value)


@dataclass
class MarkerCounts:
    """Co-occurrence of experts and markers; its size is layers x experts x markers however long the trace is.

    Attributes:
        markers: W token ids.
        positions: tokens seen by each layer.
        expert_N, joint_WN: by layer.
        marker_W: how often each marker occurs, by layer.
    """

    markers: tuple[int, ...]
    positions: dict[int, int] = field(default_factory=dict)
    expert_N: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    marker_W: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    joint_WN: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def scores(self, layer: int, least: int = 1) -> Floats:
        """Mean nPMI over the markers of each expert, ``[N]``; NaN for experts seen less than ``least`` times."""
        value_WN = npmi(
            self.joint_WN[layer].astype(float),
            self.expert_N[layer][None].astype(float),
            self.marker_W[layer][:, None].astype(float),
            float(self.positions[layer]),
        )
        mean_N: Floats = value_WN.mean(0)
        return np.where(self.expert_N[layer] < least, np.nan, mean_N)

    def ranked(self, top: int = 2, least: int = 1) -> list[tuple[int, int, float]]:
        """The ``top`` pairs of (layer, expert) over all layers with their scores, best first (n = 2 in the paper)."""
        found = [
            (layer, expert, float(score))
            for layer in self.joint_WN
            for expert, score in enumerate(self.scores(layer, least))
            if np.isfinite(score)
        ]
        return sorted(found, key=lambda item: (-item[2], item[0], item[1]))[:top]


def count_markers(trace: Trace, markers: Sequence[int], *, next_token: bool = False) -> MarkerCounts:
    """Count a trace.  A position counts for a marker when the marker is the token read there.

    Args:
        next_token: count it when the marker comes next in the sequence instead; the paper leaves this open.

    Raises:
        ConfigError: no marker, or one that does not occur.
    """
    chosen = tuple(dict.fromkeys(int(m) for m in markers))
    tokens = trace.tokens(["uid", "sequence", "token"])
    seen = tokens["token"]
    if next_token:
        same = np.r_[tokens["sequence"][1:] == tokens["sequence"][:-1], [False]]
        seen = np.where(same, np.r_[seen[1:], [-1]], -1)
    if not chosen:
        raise ConfigError("markers: name at least one token id")
    if missing := [m for m in chosen if not (seen == m).any()]:
        raise ConfigError(f"marker {missing[0]} does not occur in the trace; trace text that has it")
    place = {m: i for i, m in enumerate(chosen)}
    marker_T = np.array([place.get(int(t), -1) for t in seen])
    found = MarkerCounts(chosen)
    for piece in trace.pieces():
        for layer, part in split(piece):
            _add(
                found,
                layer,
                trace.num_experts(layer),
                part.expert_RK,
                marker_T[np.searchsorted(tokens["uid"], part.uid_R)],
            )
    return found


def _add(
    found: MarkerCounts,
    layer: int,
    num_experts: int,
    expert_RK: NDArray[np.int64],
    marker_R: NDArray[np.int64],
) -> None:
    if layer not in found.joint_WN:
        found.positions[layer] = 0
        found.expert_N[layer] = np.zeros(num_experts, np.int64)
        found.marker_W[layer] = np.zeros(len(found.markers), np.int64)
        found.joint_WN[layer] = np.zeros((len(found.markers), num_experts), np.int64)
    chosen_RK = expert_RK >= 0
    found.positions[layer] += len(marker_R)
    found.expert_N[layer] += np.bincount(expert_RK[chosen_RK], minlength=num_experts)
    found.marker_W[layer] += np.bincount(marker_R[marker_R >= 0], minlength=len(found.markers))
    wanted_RK = chosen_RK & (marker_R >= 0)[:, None]
    flat = np.repeat(marker_R, wanted_RK.sum(1)) * num_experts + expert_RK[wanted_RK]
    found.joint_WN[layer] += np.bincount(flat, minlength=found.joint_WN[layer].size).reshape(-1, num_experts)
