"""From a trace back to plans, for :class:`libmoe.core.interventions.ReplayPlans`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from libmoe.analysis.trace.reading import Trace
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.plan import SparsePlan


def plans(trace: Trace, forward: int = 0, mask: Tensor | None = None) -> dict[int, SparsePlan]:
    """The plans of one forward pass, by layer; weights carry no gradient.

    Args:
        forward: number of the forward pass in the trace.
        mask: ``[B, L]``, the attention mask it ran under, if tokens were padded; they get no experts.

    Raises:
        ConfigError: the mask has another number of real tokens.
        DataError: no such forward pass, tokens were left out of the trace, or two models' tokens are in it.
    """
    tokens = trace.tokens(["uid", "forward"])
    uid = tokens["uid"][tokens["forward"] == forward]
    if not len(uid):
        raise DataError(
            f"the trace has no forward pass {forward}; it has {len(np.unique(tokens['forward']))}"
        )
    if trace.facts.get("sample", 1.0) < 1 or uid[-1] - uid[0] + 1 != len(uid):
        raise DataError("tokens were left out of this trace; only one with sample=1 can be replayed")
    place = np.arange(len(uid)) if mask is None else np.flatnonzero(mask.reshape(-1).cpu().numpy())
    if len(place) != len(uid):
        raise ConfigError(f"mask has {len(place)} real tokens, forward pass {forward} had {len(uid)}")
    num_tokens = len(uid) if mask is None else mask.numel()
    return {layer: _plan(trace, layer, uid[0], place, num_tokens) for layer in trace.layers}


def _plan(trace: Trace, layer: int, first: int, place: np.ndarray, num_tokens: int) -> SparsePlan:
    parts = []
    for piece in trace.pieces(layers=[layer]):
        row = piece.row["uid"] - first
        wanted_A = ((row >= 0) & (row < len(place)))[piece.row_A]
        parts.append(
            (
                row[piece.row_A][wanted_A],
                piece.expert_A[wanted_A],
                piece.weight_A[wanted_A],
                piece.kept_A[wanted_A],
            )
        )
    token, expert, weight, kept = (np.concatenate(column) for column in zip(*parts, strict=True))
    counts = np.bincount(token, minlength=len(place))
    if len(counts) > len(place) or (counts == 0).all():
        raise DataError(f"layer {layer} did not see the tokens of this forward pass")
    rectangular = num_tokens == len(place) and (counts == counts[0]).all()
    return SparsePlan(
        torch.from_numpy(place[token]),
        torch.from_numpy(expert.astype(np.int64)),
        torch.from_numpy(weight),
        num_tokens,
        trace.num_experts(layer),
        int(counts[0]) if rectangular else None,
        None if kept.all() else torch.from_numpy(kept),
    )
