"""``sparsemixer``: one sampled expert, and the gradient of the sampling by the mid-point rule."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.scaled import ScaledExperts
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.sparsemixer import MIDPOINT, SparseMixerRouter


@register_method(
    "sparsemixer",
    summary="one expert sampled in training, router gradient by the mid-point rule",
    paper=102,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SparseMixer(Method):
    """SparseMixer (Liu et al., arXiv 2310.00811): ``y = omega * p_D E_D(x)``, D drawn from p while training.

    :class:`~libmoe.routers.sparsemixer.SparseMixerRouter` with the mid-point rule, which adds to Switch's gradient the
    part that comes from which expert was drawn.  omega is a vector that all experts of a layer share.  The balance loss
    counts the experts that were drawn.

    Attributes:
        top_k: 1 in the paper; more are drawn as GRIN draws them.
        jitter: r, how far from the best expert sampling may reach, relative to the logits.
        scaled: whether there is an omega.
    """

    top_k: int = 1
    jitter: float = 0.1
    scaled: bool = True
    balance_scope: Scope = "micro_batch"

    def build_router(self, site: Site) -> Router:
        return SparseMixerRouter(
            site.dim, self.num_experts, self.top_k, jitter=self.jitter, quadrature=MIDPOINT
        )

    def build_experts(self, site: Site) -> Experts:
        experts = self.ffn_experts(site, self.num_experts)
        return ScaledExperts(experts, site.out) if self.scaled else experts
