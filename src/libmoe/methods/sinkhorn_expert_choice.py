"""``sinkhorn-expert-choice``: experts pick their tokens from a balanced transport plan."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.softmax_expert_choice import SoftmaxExpertChoice
from libmoe.routers.transport_choice import TransportChoiceRouter


@register_method(
    "sinkhorn-expert-choice",
    summary="experts pick tokens by a Sinkhorn plan of the group, softmax weights",
    paper=101,
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SinkhornExpertChoice(SoftmaxExpertChoice):
    """Expert choice by optimal transport (Liu et al., arXiv 2401.15969 §3): the plan ranks, probabilities weigh.

    Attributes:
        iterations: rounds of Sinkhorn.
    """

    iterations: int = 20

    def build_router(self, site: Site) -> Router:
        return TransportChoiceRouter(
            site.dim, self.num_experts, transport="sinkhorn", iterations=self.iterations, **self.router_options()
        )
