"""Clusters of experts: members are to be equally probable, clusters need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import LOCAL_SCOPES, Loss, Scope
from libmoe.losses.frequency import frequencies, group_sums, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

Variance = Literal["all", "intra", "intra-over-inter"]
Scale = Literal["sum", "mean"]


class ClusterLoss(Loss):
    """``L = N' (sum_e f_e P_e + c V)`` over the N' experts that can be reached (MoEC, arXiv 2207.09094 §3.2).

    The first part is the balance loss, 1 where loads are equal; f carries no gradient.  V is a variance of the experts'
    probabilities, by which experts that nobody chose are moved too.

    * ``intra``: the mean over clusters of the (unbiased) variance within the cluster, as the released command has it;
    * ``intra-over-inter``: that, divided by ``exp(gap)``, the gap being the difference between the mean
      probabilities of the two most probable clusters, which are thereby driven apart;
    * ``all``: the variance over all experts, which knows no clusters.  It takes the place of the others where dropped
      experts leave clusters of unequal size.

    Args:
        variance: which V.
        clusters: number of clusters m, cut in order; must divide N.
        weight: c.
        scale: what V is a variance of: of *sums* over the T tokens of a group divided by T, as released, by which it
            grows with T and outweighs balance soon, or of *means*.
        scope: the tokens over which probabilities are added up: ``sequence`` or ``micro_batch``.
    """

    name = "cluster"
    scopes = LOCAL_SCOPES

    def __init__(
        self,
        coefficient: float,
        scope: Scope = "micro_batch",
        *,
        variance: Variance = "intra",
        clusters: int = 1,
        weight: float = 1.0,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(coefficient, scope)
        if variance not in ("all", "intra", "intra-over-inter"):
            raise ConfigError(f"{self.name}: variance={variance!r}; choose 'all', 'intra' or 'intra-over-inter'")
        if weight < 0:
            raise ConfigError(f"{self.name}: variance_weight={weight} must not be negative")
        self.variance, self.clusters, self.weight, self.scale = variance, clusters, weight, scale

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN, plan = self.scores(routing), self.sparse(routing)
        real_TN, tokens = real_tokens(scores_TN, ctx)
        frequency_GN, group_T = frequencies(plan, self.scope, ctx, scores_TN.dtype)
        share_GN = frequency_GN / frequency_GN.sum(-1, keepdim=True).clamp_min(1e-12)
        sum_GN = group_sums(real_TN, group_T, len(share_GN))
        alive_N = _reachable(routing, plan.num_experts)
        one_T1, _ = real_tokens(torch.ones_like(scores_TN[:, :1]), ctx)
        tokens_G1 = group_sums(one_T1, group_T, len(share_GN))
        balance_G = (share_GN * sum_GN).sum(-1)
        mean_GN = sum_GN / tokens_G1.clamp_min(1)
        spread_G = self.spread(mean_GN[:, alive_N], alive_N)
        # Each group weighs as many times its own value as it has tokens.
        times_G = tokens_G1.squeeze(1) ** (2 if self.scale == "sum" else 1)
        return alive_N.sum() * (balance_G + self.weight * times_G * spread_G).sum(), tokens

    def spread(self, mean_GA: Tensor, alive_N: Tensor) -> Tensor:
        """V of mean probabilities of the experts that can be reached, ``[G]``."""
        if len(alive_N) % self.clusters:
            raise ConfigError(f"{self.name}: clusters={self.clusters} must divide the {len(alive_N)} experts")
        left_C = alive_N.view(self.clusters, -1).sum(1)
        if self.variance == "all" or bool((left_C != left_C[0]).any()):
            return _variance(mean_GA)
        mean_GCL = mean_GA.reshape(len(mean_GA), self.clusters, -1)
        within_G = _variance(mean_GCL).mean(dim=-1)
        if self.variance == "intra" or self.clusters == 1:
            return within_G
        best_G2 = mean_GCL.mean(dim=-1).topk(2, dim=-1).values
        return within_G / (best_G2[:, 0] - best_G2[:, 1]).exp()


def _variance(x: Tensor) -> Tensor:
    """Unbiased, over the last dimension; 0 for a single number."""
    return x.var(dim=-1) if x.shape[-1] > 1 else torch.zeros_like(x[..., 0])


def _reachable(routing: Routing, num_experts: int) -> Tensor:
    """bool ``[N]``: experts that some token has a finite logit for."""
    logits_TN = routing.logits_TN
    if logits_TN is None or logits_TN.shape[1] != num_experts or not len(logits_TN):
        return torch.ones(num_experts, dtype=torch.bool, device=routing.plan.load_N().device)
    return ~logits_TN.isneginf().all(dim=0)
