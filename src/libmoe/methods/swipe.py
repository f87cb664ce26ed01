"""``swipe``: top-k whose overflow moves to the next expert with a place."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.swipe import SwipeRouter


@register_method(
    "swipe",
    summary="softmax over the chosen logits; overflow moves to the next expert with a place",
    paper=27,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class Swipe(Method):
    """FastMoE's swipe gate (He et al., arXiv 2103.13262): :class:`~libmoe.routers.swipe.SwipeRouter`.

    Loads are equal in training by construction, at the price of experts that a token did not ask for, so that there is
    no loss.  Evaluation gives each token what it asks for.

    Attributes:
        gate_bias: a bias in the gate, as published.
    """

    balance: float = 0.0
    gate_bias: bool = True

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts, bias=self.gate_bias)
        return SwipeRouter(site.dim, self.num_experts, self.top_k, gate=gate)
