"""``sinkhorn-token-choice``: tokens choose their experts from a balanced transport plan."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.softmax_token_choice import SoftmaxTokenChoice
from libmoe.routers.sinkhorn import SinkhornRouter


@register_method(
    "sinkhorn-token-choice",
    summary="top-k of a Sinkhorn plan of the group, softmax weights; no loss",
    paper=101,
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SinkhornTokenChoice(SoftmaxTokenChoice):
    """Token choice by optimal transport (Liu et al., arXiv 2401.15969 §3), in training and at inference.

    :class:`~libmoe.routers.sinkhorn.SinkhornRouter` in the place of top-k; weights are softmax probabilities, and the
    plan balances, so that there is no loss.

    Attributes:
        iterations: rounds of Sinkhorn.
    """

    importance: float = 0.0
    load: float = 0.0
    iterations: int = 20

    def build_router(self, site: Site) -> Router:
        options = self.router_options()
        return SinkhornRouter(site.dim, self.num_experts, self.top_k, iterations=self.iterations, **options)
