"""Losses that shape a gate without counting choices: sure for each token, even over the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.statistics import all_reduce_sum
from libmoe.losses.base import Loss, Scope
from libmoe.losses.frequency import group_sums, groups_of, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class SparsityLoss(Loss):
    """Mean over real tokens of ``|p / |p|_2|_1``: from 1, one expert, to ``sqrt(N)``, all alike.

    SpeechMoE (You et al., arXiv 2105.03036 eq. 6).  The scale of p does not matter, nor does the loss's scope.
    """

    name = "sparsity"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN = self.scores(routing)
        length_T1 = scores_TN.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(scores_TN.dtype).tiny)
        real_TN, tokens = real_tokens(scores_TN.abs() / length_T1, ctx)
        return real_TN.sum(), tokens


class MeanImportanceLoss(Loss):
    """``N * sum_j Imp_j^2`` with ``Imp_j`` the mean of p_j: from 1, even, to N, all on one expert.

    SpeechMoE (You et al., arXiv 2105.03036 eq. 7-8).  Unlike in a balance loss probabilities alone count.

    Args:
        scope: the tokens that Imp is a mean of: each ``sequence``, a ``micro_batch``, or ``global_batch``, the forward
            passes that all processes run at the same time, as published.  Under gradient accumulation the last two
            depend on how a process's part is cut.
    """

    name = "mean_importance"
    scopes = ("sequence", "micro_batch", "global_batch")

    def __init__(self, coefficient: float, scope: Scope = "global_batch") -> None:
        super().__init__(coefficient, scope)

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN = self.scores(routing)
        real_TN, tokens = real_tokens(scores_TN, ctx)
        one_T1, _ = real_tokens(torch.ones_like(real_TN[:, :1]), ctx)
        sums_GM = group_sums(
            torch.cat([real_TN, one_T1], dim=1), *groups_of(self.scope, ctx, real_TN.device)
        )
        local_GN = sums_GM[:, :-1]
        # Each process weighs the importance of all, held fixed, with its own sum; that one counts twice in the
        # gradient, so that the sum over processes has the gradient of the square.
        total_GM = sums_GM.detach()
        if self.scope == "global_batch":
            total_GM = ctx.memo("importance", lambda: all_reduce_sum(sums_GM.detach()))
        importance_GN = total_GM[:, :-1] / total_GM[:, -1:].clamp_min(1)
        return local_GN.shape[1] * (importance_GN * (2 * local_GN - local_GN.detach())).sum(), tokens
