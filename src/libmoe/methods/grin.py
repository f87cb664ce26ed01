"""``grin``: sampled experts with gradient-informed routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.wrapped import GradientScaledExperts
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.sparsemixer import HEUN, HEUN_STAR, SparseMixerRouter


@register_method(
    "grin",
    summary="experts sampled in training, router gradient by quadrature (SparseMixer-v2)",
    paper=140,
    aliases=("sparsemixer-v2",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class Grin(Method):
    """GRIN MoE (arXiv 2409.12136): SparseMixer-v2 routing and a balance loss over the whole batch.

    Attributes:
        rule: ``v2``, as used, or ``v2-star``, whose objective differentiates the weights too (appendix A): its softmax
            has temperature 2, in evaluation as well.
        expert_gradient: of experts whose output is shrunken, ``shrunken`` too, as released, or ``whole`` (algorithm 1).
        jitter: how far from the best expert sampling may reach, relative to the logits.
        balance_scope: frequencies over all processes and micro-batches of a step, as in the paper.
    """

    rule: Literal["v2", "v2-star"] = "v2"
    expert_gradient: Literal["shrunken", "whole"] = "shrunken"
    jitter: float = 0.01
    balance_scope: Scope = "global_batch"

    def build_router(self, site: Site) -> Router:
        quadrature = HEUN if self.rule == "v2" else HEUN_STAR
        return SparseMixerRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            jitter=self.jitter,
            quadrature=quadrature,
            whole_gradient=self.expert_gradient == "whole",
        )

    def build_experts(self, site: Site) -> Experts:
        experts = super().build_experts(site)
        return GradientScaledExperts(experts) if self.expert_gradient == "whole" else experts
