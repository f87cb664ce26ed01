"""``sam``: the best group of experts, and the k best experts in it (switch and mixture)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import GroupAlignmentLoss, Loss, Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.hierarchical import HierarchicalRouter
from libmoe.routers.places import Places


@register_method(
    "sam",
    summary="the best group of experts, then top-k inside it, with an alignment loss",
    paper=52,
    aliases=("hierarchical-top-k",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SAM(Method):
    """The switch-and-mixture gate of HetuMoE (Nie et al., arXiv 2203.14685).

    All experts of a token live on one device: :class:`~libmoe.routers.hierarchical.HierarchicalRouter` over one softmax
    of all N, gates not renormalised.  The alignment loss moves a token's best experts into the group it is sent to.

    HetuMoE adds one Switch loss for each of the k choices: k times this library's balance loss.

    Attributes:
        groups: number of groups (devices).
        alignment: coefficient of :class:`~libmoe.losses.alignment.GroupAlignmentLoss`; published without a number, as
            a sum over tokens.
        capacity_factor: an expert has ``k ceil(factor T / N)`` places while training; ``None`` never drops.
        eval_capacity_factor: outside training, where by default nothing is dropped.
        renormalise: divide a token's gates by their sum.
    """

    groups: int = 2
    alignment: float = 0.01
    balance_scope: Scope = "micro_batch"
    capacity_factor: float | None = 1.0
    eval_capacity_factor: float | None = None
    renormalise: bool = False

    def build_router(self, site: Site) -> Router:
        return HierarchicalRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            groups=self.groups,
            renormalise=self.renormalise,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            places=Places(rounding="tokens"),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [*super().build_losses(site), GroupAlignmentLoss(self.alignment, self.groups)]
