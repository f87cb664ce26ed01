"""``s-base``: experts chosen by a balanced transport plan in training, weighed by sigmoids."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.groups import Group
from libmoe.routers.places import Places
from libmoe.routers.sinkhorn import SinkhornRouter


# Facts of evaluation; in training the choice depends on all tokens of the group.
@register_method(
    "s-base",
    summary="Sinkhorn balances the choice while training; sigmoid weights",
    paper=76,
    aliases=("s-base-sinkmoid", "sinkmoid"),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SBase(Method):
    """Sinkhorn-BASE (Clark et al., arXiv 2202.01169) as a baseline of Csordas et al. (arXiv 2310.10837 §3.3).

    While training, :class:`~libmoe.routers.sinkhorn.SinkhornRouter` picks the k experts from a plan that gives every
    expert as many tokens; evaluation takes the k largest sigmoids, so that it sees no other token.  Weights are
    sigmoids either way.

    Attributes:
        iterations: rounds of Sinkhorn.
        group: tokens balanced together in training; the paper's are those of the ``batch``.
        balance: 0: the plan balances.
    """

    num_experts: int = 16
    top_k: int = 4
    balance: float = 0.0
    iterations: int = 3
    group: Group = "batch"

    def build_router(self, site: Site) -> Router:
        return SinkhornRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            scores="sigmoid",
            iterations=self.iterations,
            always=False,
            places=Places(group=self.group),
        )
