"""``expert-clusters``: experts in clusters of siblings, some of whom are dropped for a while (MoEC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from libmoe.controllers import Controller
from libmoe.controllers.expert_dropout import ExpertDropout
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.sublayers import SublayerExperts
from libmoe.losses import Loss, Scope, ZLoss
from libmoe.losses.clusters import ClusterLoss, Scale, Variance
from libmoe.methods.base import Method, register_method
from libmoe.routers.cosine import CosineGate
from libmoe.routers.expert_dropout import DroppingGate, survivors
from libmoe.routers.sigmoid import SigmoidRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

TEMPERATURE, LEAST_TEMPERATURE = 0.07, 1e-4


class AngleRouter(SigmoidRouter):
    """Top-k by cosine s, weighed by ``sigmoid(s / t)`` with a learned t; losses see ``softmax(s / 0.07)``."""

    def __init__(self, dim: int, num_experts: int, top_k: int = 1, **options: Any) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=False, **options)
        self.temperature = nn.Parameter(torch.tensor([TEMPERATURE]))

    def score(self, logits_TN: Tensor) -> Tensor:
        gone_TN = logits_TN.isneginf()  # the derivative of -inf / t is no number
        t = self.temperature.to(logits_TN.dtype).clamp_min(LEAST_TEMPERATURE)
        return (logits_TN.masked_fill(gone_TN, 0) / t).masked_fill(gone_TN, -math.inf).sigmoid()

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        return logits_TN  # large sigmoids are all 1

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        return (logits_TN / TEMPERATURE).softmax(dim=-1)


@register_method(
    "expert-clusters",
    summary="clusters of like experts, kept alike by a variance loss and dropped in turns",
    paper=58,
    aliases=("mixture-of-expert-clusters",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ExpertClusters(Method):
    """MoEC (Xie et al., arXiv 2207.09094): ``y = sigmoid(s_a / t) E_a(x)``, s the cosine in a low dimension.

    :class:`~libmoe.losses.clusters.ClusterLoss` makes the experts of a cluster equally probable, so that they see
    like tokens; :class:`~libmoe.controllers.expert_dropout.ExpertDropout` takes some of every cluster away for a
    while, so that their tokens train siblings.  A token without a place is passed on by the residual alone.  The
    controller belongs to LibMoE's own training loop; in another one all experts stay.

    The released gate counts the survivors' places from the first cluster on all workers; here, as in the text, each
    cluster keeps the same places of its own.  With 8 experts in place of 64, 2 clusters of 4 keep clusters plural.

    Attributes:
        clusters: m, of equal size; 8 of 8 experts in the paper.
        variance: ``intra``, within clusters; ``intra-over-inter``, which drives clusters apart too (the paper's
            formula); ``all``, the baseline without clusters.
        variance_weight: c; ``variance_scale``: of ``sum`` over tokens, as released, or their ``mean``.
        drop_rate: share of each cluster that is out of reach in training; 0 for none.
        drop_interval: steps until others are; ``drop_seed``: of the draws.
        projection: dimensions in which angles are taken.
        sublayers: as in ``stable-moe``; 3 in the paper's inserted layers.
        capacity_factor: while training; ``None`` never drops, as in the paper's fine-tuning.
        eval_capacity_factor: otherwise.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    clusters: int = 2
    variance: Variance = "intra"
    variance_weight: float = 1.0
    variance_scale: Scale = "sum"
    drop_rate: float = 0.5
    drop_interval: int = 250
    drop_seed: int = 0
    projection: int = 32
    sublayers: int = 1
    capacity_factor: float | None = 2.0
    eval_capacity_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks the interval
        left = self.clusters * survivors(self.num_experts, self.clusters, self.drop_rate)
        if left < self.top_k:
            raise ConfigError(f"drop_rate={self.drop_rate} leaves {left} experts, fewer than top_k={self.top_k}")
        if self.sublayers < 1:
            raise ConfigError(f"sublayers={self.sublayers} must be at least 1")

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        return max(1, site.hidden // (self.top_k * self.sublayers))

    def build_router(self, site: Site) -> Router:
        gate = CosineGate(site.dim, self.num_experts, self.projection, norm=1.0)
        return AngleRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            gate=DroppingGate(gate, self.num_experts),
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
        )

    def build_experts(self, site: Site) -> Experts:
        parts = [self.ffn_experts(site, self.num_experts) for _ in range(self.sublayers)]
        return parts[0] if self.sublayers == 1 else SublayerExperts(parts)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        cluster = ClusterLoss(
            self.balance,
            self.balance_scope,
            variance=self.variance,
            clusters=self.clusters,
            weight=self.variance_weight,
            scale=self.variance_scale,
        )
        return [cluster, ZLoss(self.z_loss)]

    def build_controllers(self) -> Sequence[Controller]:
        return [ExpertDropout(self.drop_rate, self.clusters, self.drop_interval, self.drop_seed)]
