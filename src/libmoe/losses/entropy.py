"""Entropies of the router's probabilities: low for each token, high for all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import LOCAL_SCOPES, Loss
from libmoe.losses.frequency import group_sums, groups_of, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class RoutingEntropyLoss(Loss):
    """Mean over real tokens of ``H(p) = -sum_i p_i ln p_i``, from 0 (one expert) to ``ln N`` (all alike).

    The dynamic loss of Huang et al. (arXiv 2403.07652 eq. 7).  Scores that do not sum to 1 are divided by their sum.
    Scope does not matter.
    """

    name = "routing_entropy"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN = self.scores(routing)
        tiny = torch.finfo(scores_TN.dtype).tiny
        p_TN = scores_TN / scores_TN.sum(dim=-1, keepdim=True).clamp_min(tiny)
        # Without the bound the gradient of p ln p is infinite where a softmax underflows to 0.
        entropy_T1 = -(p_TN * p_TN.clamp_min(tiny).log()).sum(dim=-1, keepdim=True)
        real_T1, tokens = real_tokens(entropy_T1, ctx)
        return real_T1.sum(), tokens


class UsageEntropyLoss(Loss):
    """``-H(p) = sum_i p_i ln p_i`` of the mean ``p`` of ``softmax(logits)`` over tokens, from ``-ln N`` to 0.

    Lowest where the tokens together use all experts alike, however sure the router is of each (Csordas et al., arXiv
    2310.10837 eq. 21-22).  The softmax is that of the logits whatever scores the router makes of them, so that experts
    which are not chosen get a gradient too.

    Args:
        scope: ``sequence`` or ``micro_batch``; the mean probabilities of a whole step are not gathered.
    """

    name = "usage_entropy"
    scopes = LOCAL_SCOPES

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        logits_TN = self.logits(routing)
        if logits_TN.shape[1] != routing.plan.num_experts:
            raise ConfigError(f"{self.name} loss needs one logit for each expert; this router gives none")
        real_TN, tokens = real_tokens(logits_TN.softmax(dim=-1), ctx)
        mass_GN = group_sums(real_TN, *groups_of(self.scope, ctx, real_TN.device))
        size_G = mass_GN.detach().sum(dim=-1)
        mean_GN = mass_GN / size_G.clamp_min(1e-12).unsqueeze(1)
        entropy_G = -(mean_GN * mean_GN.clamp_min(torch.finfo(mean_GN.dtype).tiny).log()).sum(dim=-1)
        return -(size_G * entropy_G).sum(), tokens
