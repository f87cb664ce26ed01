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
    mask: Tensor | None = None,
    priority: Priority = "choice",
    order_T: Tensor | None = None,
) -> Tensor:
    """bool ``[T, K]``: assignments that fit; earlier ones win, padding never takes a slot.

    Args:
        expert_TK: chosen experts, best first.
        capacity_N: int64 ``[N]``, slots per expert (they may differ, arXiv 2410.07348 eq. 8).
        mask: bool ``[T]``, real tokens, or ``[T, K]``, assignments that ask for a slot; others are not kept.
        priority: ``choice`` serves all first choices before any second choice (GShard); ``token`` serves
            token after token.
        order_T: the tokens in the order in which they are served; ``None``: as they come.
    """
    if order_T is not None:
        in_order = mask if mask is None else mask[order_T]
        kept_TK = keep_within(expert_TK[order_T], capacity_N, in_order, priority)
        return torch.empty_like(kept_TK).index_copy(0, order_T, kept_TK)
    num_tokens, k = expert_TK.shape
    by_choice = priority == "choice"
    expert_A = (expert_TK.t() if by_choice else expert_TK).reshape(-1)
    real_A = torch.ones_like(expert_A, dtype=torch.bool)
    if mask is not None:
        real_TK = mask.unsqueeze(1).expand(-1, k) if mask.dim() == 1 else mask
        real_A = (real_TK.t() if by_choice else real_TK).reshape(-1)
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


def keep_best(mask_TN: Tensor, scores_TN: Tensor, slots: int, mask_T: Tensor | None = None) -> Tensor:
    """bool ``[T, N]``: of the requests ``mask_TN`` those that fit, best first; padding never takes a slot.

    Each expert serves first the tokens that rank it first, then those that rank it second, and so on, and among equal
    ranks the highest score; the order of tokens decides exact ties alone (arXiv 2403.18926 as released).
    """
    if mask_T is not None:
        mask_TN = mask_TN & mask_T.unsqueeze(1)
    num_experts = mask_TN.shape[1]
    rank_TN = scores_TN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank_TN = torch.where(mask_TN, rank_TN, num_experts)
    by_score = scores_TN.argsort(dim=0, descending=True, stable=True)
    order = by_score.gather(0, rank_TN.gather(0, by_score).argsort(dim=0, stable=True))
    place = torch.arange(len(mask_TN), device=mask_TN.device).unsqueeze(1).expand_as(order)
    return mask_TN & (torch.empty_like(order).scatter(0, order, place) < slots)
