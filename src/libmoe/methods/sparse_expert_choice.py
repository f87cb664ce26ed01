"""``sparse-expert-choice``: experts pick from a plan with no more entries than they have places."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.softmax_expert_choice import SoftmaxExpertChoice
from libmoe.routers.transport_choice import TransportChoiceRouter


@register_method(
    "sparse-expert-choice",
    summary="experts pick tokens by a sparse quadratic transport plan, softmax weights",
    paper=101,
    aliases=("sparsity-constrained-expert-choice",),
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SparseExpertChoice(SoftmaxExpertChoice):
    """Expert choice by sparsity-constrained transport (Liu et al., arXiv 2209.15466; arXiv 2401.15969 §3).

    The plan (:func:`~libmoe.routers.transport.quadratic_plan`) is of the softmax probabilities.

    Attributes:
        iterations, rate, strength: steps of Adam on the dual, their size, and the weight of the regulariser; with the
            published 20 steps of 0.01 tokens' sums are far from 1 yet.
    """

    iterations: int = 20
    rate: float = 0.01
    strength: float = 1.0

    def build_router(self, site: Site) -> Router:
        return TransportChoiceRouter(
            site.dim,
            self.num_experts,
            transport="sparse",
            iterations=self.iterations,
            rate=self.rate,
            strength=self.strength,
            **self.router_options(),
        )
