"""``locmoe``: a router without parameters, and a loss that keeps tokens on their node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss, Scope
from libmoe.losses.locality import Home, LocalityLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.pooled import PooledRouter


@register_method(
    "locmoe",
    summary="fixed orthogonal pooling as router, and a loss for experts on the own node",
    paper=124,
    aliases=("grap",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class LocMoE(Method):
    """LocMoE (Li et al., arXiv 2401.13920): ``L = L_LM + balance L_aux + locality L_loc``.

    :class:`~libmoe.routers.pooled.PooledRouter` has no parameters: what a token wants must lie in its features.
    ``y = R E(x)`` with ``R = softmax(ReLU(z))`` of the chosen expert.  The two losses pull against each other where the
    data of a node want few of its experts.  :mod:`libmoe.routers.capacity_bound` has the paper's bound on capacity.

    Not given in the paper: the coefficient and the smoothing of L_loc, the size of the noise in
    ``ReLU(w x + noise)``, and capacity factors; these are options with a cautious default.  In PanGu-Sigma a token's
    domain first picks the group of experts in which this router chooses.

    Attributes:
        balance: alpha, of Switch's loss.
        locality: mu.
        nodes: how many nodes the experts lie on, in contiguous parts; one has nothing to draw tokens to.
        home: where a token is: on this process's node (``rank``), or on the one named by the side input ``node``
            (``side``).
        smoothing: share of the fully localised distribution that lies on other nodes.
        scale: of the pooled features; 1 as published, which leaves all weights near 1/N.
        relu: whether the softmax sees ``ReLU(z)`` or z.
        noise_std: of normal noise on z while training.
        capacity_factor: while training; ``None`` never drops.  ``eval_capacity_factor``: the same otherwise.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    locality: float = 0.01
    nodes: int = 1
    home: Home = "rank"
    smoothing: float = 0.01
    scale: float = 1.0
    relu: bool = True
    noise_std: float = 0.0
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._locality().localised(self.num_experts)  # checks the options

    def build_router(self, site: Site) -> Router:
        return PooledRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            scale=self.scale,
            relu=self.relu,
            noise=GaussianNoise(self.noise_std) if self.noise_std else None,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
        )

    def _locality(self) -> LocalityLoss:
        scope: Scope = "sequence" if self.balance_scope == "sequence" else "micro_batch"
        coefficient = self.locality if self.nodes > 1 else 0.0
        return LocalityLoss(coefficient, scope, nodes=self.nodes, smoothing=self.smoothing, home=self.home)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [*super().build_losses(site), self._locality()]
