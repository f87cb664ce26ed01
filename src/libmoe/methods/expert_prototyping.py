"""``expert-prototyping``: k top-1 routers over k groups of experts instead of one top-k router (M6-T)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import InputJitter
from libmoe.routers.prototypes import PrototypeRouter


@register_method(
    "expert-prototyping",
    summary="k groups of experts, one for a token in each (k top-1)",
    paper=132,
    aliases=("k-top1", "ktop1"),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ExpertPrototyping(Method):
    """M6-T (Yang et al., arXiv 2105.15082): :class:`~libmoe.routers.prototypes.PrototypeRouter`; HetuMoE's ``ktop1``.

    Weights of a token sum to up to k, where those of top-k over one softmax sum to less than 1: compare the two with
    ``renormalise``, or know that the layer's output is larger.

    Attributes:
        top_k: experts per token in all.
        per_prototype: of them in each prototype; there are ``top_k / per_prototype`` prototypes.
        balance: the paper finds that a loss evens loads and does not improve the model, hence 0.  Its value is the
            mean over prototypes of their Switch losses; HetuMoE adds them up, which is ``top_k`` times as much.
        capacity: ``kx``, places for all choices, or ``1x``, places for one choice of each token, by which more experts
            cost no more than one does (§3.2).
        capacity_factor: gamma, while training; ``None`` never drops.
        eval_capacity_factor: outside training, where by default nothing is dropped.
        jitter: training multiplies the router's input by ``U[1 - jitter, 1 + jitter]``; 0 for none.
        renormalise: divide a token's weights by their sum.
    """

    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    per_prototype: int = 1
    capacity: Literal["kx", "1x"] = "kx"
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    jitter: float = 0.0
    renormalise: bool = False

    def build_router(self, site: Site) -> Router:
        return PrototypeRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            per_prototype=self.per_prototype,
            shared_places=self.capacity == "1x",
            renormalise=self.renormalise,
            noise=InputJitter(self.jitter) if self.jitter else None,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
        )
