"""``grin``: sampled experts with gradient-informed routing."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.sparsemixer import SparseMixerRouter


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
        jitter: how far from the best expert sampling may reach, relative to the logits.
        balance_scope: frequencies over all processes and micro-batches of a step, as in the paper.
    """

    jitter: float = 0.01
    balance_scope: Scope = "global_batch"

    def build_router(self, site: Site) -> Router:
        return SparseMixerRouter(site.dim, self.num_experts, self.top_k, jitter=self.jitter)
