"""Traces of routing that is made up, so that what a metric must find is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from libmoe.analysis import Trace, TraceRecorder
from libmoe.core.context import ForwardContext, options
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing


def trace_of(
    experts: Mapping[int, Tensor] | Tensor,
    num_experts: int,
    *,
    ids: Tensor | None = None,
    side: Mapping[str, Tensor] | None = None,
    kept: Tensor | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Trace:
    """A trace of one forward pass: ``experts [B, L, K]`` of each layer, all with equal weights.

    Args:
        ids, kept: ``[B, L]`` token ids and ``[B, L, K]`` flags of assignments that capacity kept.
        side: ``[B, L]`` or ``[B]`` side inputs, which become columns.
    """
    by_layer = {0: experts} if isinstance(experts, Tensor) else dict(experts)
    side = dict(side or {})
    recorder = TraceRecorder(side=list(side), labels=labels)
    with options(side=side):
        context = ForwardContext({} if ids is None else {"input_ids": ids})
    for layer, expert_BLK in by_layer.items():
        batch, length, k = expert_BLK.shape
        flat_TK = expert_BLK.reshape(batch * length, k)
        kept_TK = None if kept is None else kept.reshape(batch * length, k)
        plan = SparsePlan.from_topk(flat_TK, torch.full(flat_TK.shape, 1 / k), num_experts, kept_TK)
        recorder(context.layer(layer, (batch, length), False), Routing(plan))
    return recorder.trace()
