"""Expert capacity: how many assignments an expert accepts, and which ones it drops."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Priority = Literal["token", "choice"]


def capacity(num_assignments: int, num_experts: int, factor: float) -> int:
    """``ceil(factor * A / N)``: slots of each expert for A assignments (arXiv 2101.03961, eq. 3)."""
    return math.ceil(factor * num_assignments / num_experts)


def keep_within(
    expert_TK: Tensor,
    capacity_N: Tensor,
    mask_T: Tensor | None = None,
    priority: Priority = "choice",
) -> Tensor:
    """bool ``[T, K]``: assignments that fit; earlier ones win, padding never takes a slot.

    Args:
        expert_TK: chosen experts, best first.
        capacity_N: int64 ``[N]``, slots per expert (they may differ, arXiv 2410.07348 eq. 8).
        mask_T: real tokens; assignments of padding are not kept.
        priority: ``choice`` serves all first choices before any second choice (GShard); ``token`` serves
            token after token.
    """
    num_tokens, k = expert_TK.shape
    by_choice = priority == "choice"
    expert_A = (expert_TK.t() if by_choice else expert_TK).reshape(-1)
    real_A = torch.ones_like(expert_A, dtype=torch.bool)
    if mask_T is not None:
        real_A = mask_T.repeat(k) if by_choice else mask_T.repeat_interleave(k)
    num_experts = capacity_N.shape[0]
    # Padding goes to a queue of its own; a stable sort then gives each assignment its place in its queue.
    queue_A = torch.where(real_A, expert_A, num_experts)
    order = torch.argsort(queue_A, stable=True)
    starts = torch.bincount(queue_A, minlength=num_experts + 1).cumsum(0).roll(1)
    starts[0] = 0
    place_A = torch.empty_like(queue_A)
    place_A[order] = torch.arange(len(order), device=order.device) - starts[queue_A[order]]
    limits = torch.cat([capacity_N, capacity_N.new_zeros(1)])
    kept_A = place_A < limits[queue_A]
    return kept_A.view(k, num_tokens).t() if by_choice else kept_A.view(num_tokens, k)
