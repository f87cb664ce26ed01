"""``random``: experts drawn by lot, the control for everything a router could learn."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.random import RandomRouter


@register_method("random", summary="random experts (control)", causal=True, batch_independent=True)
@dataclass(kw_only=True)
class Random(Method):
    """k random experts for each token, with weight 1/k; no gate and no balance loss.

    Training draws anew in each forward; evaluation always draws the same experts at the same position.
    """

    balance: float = 0.0

    def build_router(self, site: Site) -> Router:
        return RandomRouter(self.num_experts, self.top_k)
