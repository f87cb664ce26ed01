"""Balance by scores: the gates of overloaded experts are pushed down, those of underloaded ones up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.losses.base import Loss
from libmoe.losses.frequency import frequencies, token_count

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class OverloadLoss(Loss):
    """``L = 1/T sum_i (n_i - m) / m * sum of the scores of the n_i tokens that chose i``, m the mean of all n.

    StableMoE (Dai et al., arXiv 2204.08396 eq. 5), divided by the number of tokens as its main loss is.  The counts
    carry no gradient.  0 where loads are equal, and of either sign otherwise.

    Unlike ``N sum f P`` it moves chosen scores alone, and needs none that sum to 1.
    """

    name = "overload"
    counts_steps = True

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN, plan, mask_T = self.scores(routing), self.sparse(routing), ctx.mask_T
        frequency_GN, group_T = frequencies(plan, self.scope, ctx, scores_TN.dtype)
        share_GN = frequency_GN / frequency_GN.sum(-1, keepdim=True).clamp_min(1e-12)
        token_A, expert_A = plan.token_A, plan.expert_A
        if mask_T is not None:
            real_A = mask_T[token_A]
            token_A, expert_A = token_A[real_A], expert_A[real_A]
        group_A = torch.zeros_like(token_A) if group_T is None else group_T[token_A]
        excess_A = plan.num_experts * share_GN[group_A, expert_A] - 1
        return (excess_A * scores_TN[token_A, expert_A]).sum(), token_count(ctx, scores_TN)
