"""``smile``: one router for the node, one for the place in it (bi-level routing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import DeviceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.hierarchical import BiLevelGate, HierarchicalRouter


@register_method(
    "smile",
    summary="bi-level top-1: a node, and a place in it",
    paper=19,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SMILE(Method):
    """SMILE (He et al., arXiv 2212.05191): ``y = p_i q_j E_ij(x)``, ``i = argmax p``, ``j = argmax q``.

    Experts stand as n nodes of m.  The gate is :class:`~libmoe.routers.hierarchical.BiLevelGate`: over all experts
    it is a softmax whose logits have the form ``a_i + b_j``, which says how much less it can express.  The loss
    ``balance n sum_i f_i P_i + place_balance m sum_j g_j Q_j`` looks at nodes and at places, and cannot see that
    place i of node i gets everything.

    Attributes:
        nodes: n.
        top_k: experts of a token, all in one node; 1 as published.
        balance, place_balance: alpha and beta, whose sum is the value at balance.  Not certain: together as much as the
            Switch loss usually gets.
        own_places: each node has a router of places of its own.
        capacity_factor: at each hop while training (:class:`~libmoe.routers.hierarchical.HierarchicalRouter`), 2.0
            not being certain either; ``None`` never drops.
        eval_capacity_factor: outside training, where by default nothing is dropped.
        renormalise: divide a token's gates by their sum; of a single expert nothing would be left to learn from.
    """

    top_k: int = 1
    nodes: int = 2
    balance: float = 0.005
    place_balance: float = 0.005
    balance_scope: Scope = "micro_batch"
    own_places: bool = False
    capacity_factor: float | None = 2.0
    eval_capacity_factor: float | None = None
    renormalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes < 1 or self.num_experts % self.nodes:
            raise ConfigError(f"nodes={self.nodes} must divide num_experts={self.num_experts}")
        if self.renormalise and self.top_k == 1:
            raise ConfigError("renormalise with top_k=1 makes every gate 1, and the router learns nothing; use false")

    def build_router(self, site: Site) -> Router:
        size = self.num_experts // self.nodes
        return HierarchicalRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            groups=self.nodes,
            two_hops=True,
            renormalise=self.renormalise,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            gate=BiLevelGate(site.dim, self.nodes, size, self.own_places),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        size = self.num_experts // self.nodes
        return [
            DeviceBalanceLoss(self.balance, self.nodes, self.balance_scope),
            DeviceBalanceLoss(self.place_balance, size, self.balance_scope, interleaved=True),
            ZLoss(self.z_loss),
        ]
