"""Entropies of the router's probabilities: low for each token, high for all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss, Scope
from libmoe.losses.frequency import group_sums, real_tokens

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
        scores_TN = routing.scores_TN
        if scores_TN is None:
            raise ConfigError(f"{self.name} loss needs scores; this router gives none")
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

    def __init__(self, coefficient: float, scope: Scope = "sequence") -> None:
        super().__init__(coefficient, scope)
        if scope in ("rank", "global_batch"):
            raise ConfigError(f"{self.name}: scope {scope!r} needs all tokens at once; use 'sequence' or 'micro_batch'")

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        logits_TN = routing.logits_TN
        if logits_TN is None or logits_TN.shape[1] != routing.plan.num_experts:
            raise ConfigError(f"{self.name} loss needs one logit for each expert; this router gives none")
        real_TN, tokens = real_tokens(logits_TN.softmax(dim=-1), ctx)
        group_T = ctx.sequence_T.to(logits_TN.device) if self.scope == "sequence" else None
        mass_GN = group_sums(real_TN, group_T, int(group_T[-1]) + 1 if group_T is not None and len(group_T) else 1)
        size_G = mass_GN.detach().sum(dim=-1)
        mean_GN = mass_GN / size_G.clamp_min(1e-12).unsqueeze(1)
        entropy_G = -(mean_GN * mean_GN.clamp_min(torch.finfo(mean_GN.dtype).tiny).log()).sum(dim=-1)
        return -(size_G * entropy_G).sum(), tokens
