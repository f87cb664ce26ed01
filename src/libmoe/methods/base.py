"""Methods: a name, its options, and how it composes the parts at a site.

A method is a dataclass.  Its fields are the options of a recipe; its ``build_*`` methods make the parts of the
layer at one :class:`~libmoe.core.site.Site`.  A new method usually overrides ``build_router`` alone::

    @register_method("my-router", summary="...")
    @dataclass(kw_only=True)
    class MyMethod(Method):
        def build_router(self, site):
            return MyRouter(site.dim, self.num_experts, self.top_k)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from libmoe.controllers.base import Controller
from libmoe.core.config import build
from libmoe.core.errors import ConfigError
from libmoe.core.registry import Info, Registry
from libmoe.core.routing import Router
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.estimators import Estimator, estimator
from libmoe.experts import FFN, Experts, FFNExperts, SharedExpert
from libmoe.layers.moe import MoELayer
from libmoe.losses import BalanceLoss, Loss, Scope, ZLoss

METHODS: Registry[type[Method]] = Registry("method")
M = TypeVar("M", bound="type[Method]")


@dataclass(kw_only=True)
class Method:
    """Options every method has, and the default composition: FFN experts, balance and z losses.

    Attributes:
        num_experts: N, how many routed experts there are.
        top_k: K, how many of them a token uses.
        expert_hidden: hidden width of an expert; ``None`` takes the dense FFN's width divided by K, so that a
            token's active FFN parameters equal the dense layer's.  Upcycling copies need the dense width.
        shared_hidden: hidden width of an always-on shared expert; 0 for none.
        shared_gate: scale the shared expert's output by ``sigmoid(w . x)`` (Qwen2-MoE).
        balance: coefficient of the load-balancing loss; 0 is off.
        balance_scope: tokens that are balanced together: ``sequence``, ``micro_batch``, ``rank``, ``global_batch``.
        z_loss: coefficient of the router z-loss.
        router_init_scale: factor on the initial weight matrices of the router; 0 makes a linear router begin
            undecided.  Nothing changes where only their direction counts (cosine gates).
        estimator: of gradients: ``none``, ``straight-through``, ``dense`` or ``reinmax`` (:mod:`libmoe.estimators`).
    """

    num_experts: int = 8
    top_k: int = 2
    expert_hidden: int | None = None
    shared_hidden: int = 0
    shared_gate: bool = False
    balance: float = 0.01
    balance_scope: Scope = "sequence"
    z_loss: float = 0.0
    router_init_scale: float = 1.0
    estimator: str = "none"

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ConfigError(f"num_experts must be at least 1, got {self.num_experts}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"top_k={self.top_k} must be between 1 and num_experts={self.num_experts}")
        if not 0 <= self.router_init_scale < math.inf:
            raise ConfigError(f"router_init_scale must be 0 or a positive number, got {self.router_init_scale}")

    # -- parts -------------------------------------------------------------------------------------------
    def build_router(self, site: Site) -> Router:
        raise NotImplementedError(f"{type(self).__name__} defines no build_router()")

    def build_experts(self, site: Site) -> Experts:
        return self.ffn_experts(site, self.num_experts)

    def build_shared(self, site: Site) -> SharedExpert | None:
        width = self.shared_width(site)
        if not width:
            return None
        ffn = FFN(site.dim, width, site.activation, site.gated, site.bias, site.init_std, site.out_dim)
        return SharedExpert(ffn, self.shared_gate)

    def build_mix(self, site: Site) -> nn.Module | None:
        """What joins experts and shared part (:class:`~libmoe.layers.moe.MoELayer`); ``None`` adds them."""
        return None

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [BalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]

    def build_estimator(self, site: Site) -> Estimator | None:
        return estimator(self.estimator)

    def build_controllers(self) -> Sequence[Controller]:
        """Controllers for the whole model (one set, not one per layer)."""
        return []

    # -- composition -------------------------------------------------------------------------------------
    def ffn_experts(
        self, site: Site, num_experts: int, kind: Callable[..., FFNExperts] = FFNExperts, **options: Any
    ) -> FFNExperts:
        """So many experts of the site's form; ``options`` are further ones of ``kind``."""
        return kind(
            num_experts,
            site.dim,
            self.hidden(site),
            site.activation,
            site.gated,
            site.bias,
            site.init_std,
            out_dim=site.out_dim,
            **options,
        )

    def hidden_of_copies(self, site: Site) -> int:
        """Hidden width of the experts that upcycling makes from the dense FFN."""
        return site.hidden

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // self.top_k)

    def shared_width(self, site: Site) -> int:
        """Hidden width of the shared expert; 0 for none."""
        return self.shared_hidden

    def build_layer(self, site: Site) -> nn.Module:
        """The module that takes the FFN's place; each part draws its initial weights from a seed of its own."""
        router = self.seeded_router(site)
        with seeded(site.seed, site.index, "experts"):
            experts = self.build_experts(site)
        with seeded(site.seed, site.index, "shared"):
            shared = self.build_shared(site)
        with seeded(site.seed, site.index, "mix"):
            mix = self.build_mix(site)
        return MoELayer(
            router,
            experts,
            shared=shared,
            mix=mix,
            losses=self.build_losses(site),
            estimator=self.build_estimator(site),
            index=site.index,
        )

    def seeded_router(self, site: Site) -> Router:
        """The router with the initial weights that it has at ``site``."""
        with seeded(site.seed, site.index, "router"):
            router = self.build_router(site)
        self._scale(router)
        return router

    def _scale(self, router: Router) -> None:
        """Multiply the router's matrices; temperatures and biases keep their values."""
        if self.router_init_scale == 1.0:
            return
        matrices = [weight for weight in router.parameters() if weight.dim() > 1]
        if not matrices:
            raise ConfigError(
                f"router_init_scale={self.router_init_scale:g}: {type(self).__name__} trains no matrices in its router"
            )
        with torch.no_grad():
            for weight in matrices:
                weight.mul_(self.router_init_scale)


def register_method(
    name: str,
    *,
    summary: str,
    paper: int | None = None,
    aliases: tuple[str, ...] = (),
    exact_upcycling: bool = True,
    **facts: Any,
) -> Callable[[M], M]:
    """Class decorator: enter a :class:`Method` in the registry, and so in listings and contract tests.

    Args:
        summary: one line for listings.
        paper: number in the catalogue of papers.
        exact_upcycling: N copies of a dense FFN give the dense output (gates sum to 1).
        facts: further declarations, for example ``causal=False``.
    """
    info = Info(name, summary, paper, aliases, {"exact_upcycling": exact_upcycling} | facts)
    return cast(Callable[[M], M], METHODS.register(info))


def create(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Method:
    """The method called ``name`` with options.

    Raises:
        ConfigError: unknown name or option (with the nearest valid one), or a value out of range.
    """
    return build(METHODS.get(name), {**(options or {}), **more}, where=name)
