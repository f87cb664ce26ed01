"""``fastmoe``: the softmax over the k largest logits, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.topk import TopKRouter


@register_method(
    "fastmoe", summary="softmax over the k chosen logits, no loss (naive gate)", paper=27, aliases=("naive",)
)
@dataclass(kw_only=True)
class FastMoE(Method):
    """FastMoE's naive gate (He et al., arXiv 2103.13262), its default: no loss, no noise, no capacity.

    Its other gates are the methods ``noisy-top-k``, ``gshard``, ``switch`` and ``swipe``.

    Attributes:
        gate_bias: a bias in the gate, as published.
    """

    balance: float = 0.0
    gate_bias: bool = True

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts, bias=self.gate_bias)
        return TopKRouter(site.dim, self.num_experts, self.top_k, softmax_after_topk=True, gate=gate)
