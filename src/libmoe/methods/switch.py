"""``switch``: one expert per token, with a capacity (Switch Transformers)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Plan, SparsePlan
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts, FFNExperts
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate, Precision
from libmoe.routers.noise import GumbelNoise, InputJitter
from libmoe.routers.places import Places, Queue
from libmoe.routers.topk import TopKRouter


class IdentityOverflow(FFNExperts):
    """An assignment beyond capacity contributes ``weight * x`` instead of nothing.

    Earlier transformers releases did this; the paper passes the token on by the residual alone (§2.2).
    """

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        y_TD = super().execute(x_TD, plan, x_AD)
        if not isinstance(plan, SparsePlan) or plan.kept_A is None:
            return y_TD
        lost_A = torch.where(plan.kept_A, 0, plan.weight_A)
        lost_T = lost_A.new_zeros(plan.num_tokens).index_add(0, plan.token_A, lost_A)
        return y_TD + (lost_T.unsqueeze(1) * x_TD).to(y_TD.dtype)


def truncated_normal_(weight: Tensor, scale: float) -> None:
    """In place: ``N(0, scale / fan_in)``, redrawn beyond two standard deviations (§2.4; scale 0.1 there)."""
    std = math.sqrt(scale / weight.shape[-1])
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


# Facts of the default evaluation, which drops nothing.  While training, capacity is a queue over the whole
# micro-batch: a token may lose its place to earlier sequences (never to later tokens).
@register_method(
    "switch",
    summary="top-1 router with expert capacity",
    paper=119,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class Switch(Method):
    """Switch Transformers (Fedus et al., arXiv 2101.03961).

    ``y = p_e(x) E_e(x)`` with ``e = argmax p`` and p not renormalised, so that the router gets a gradient
    (eq. 2); ``ceil(factor * T / N)`` tokens per expert, earlier tokens first (eq. 3); balance loss with
    coefficient 0.01 on the choices before dropping (eq. 4-6).

    Attributes:
        selection: a token's expert while training is the ``best``, or ``sampled`` from the router's probabilities, one
            of the ways to explore that the paper compares, and what the estimator ``reinmax`` wants.
        jitter: training multiplies the router's input by ``U[1 - jitter, 1 + jitter]``; 0 for none.
        capacity_factor: while training, over the tokens of a micro-batch; ``None`` never drops.
        eval_capacity_factor: outside training.  The paper uses 2.0; the default here is ``None``, so that a
            token's output depends neither on its neighbours in the batch nor on how text is cut into batches.
        min_capacity: an expert takes so many tokens at least.
        queue: which tokens it takes: the earlier ones (``position``, the paper), those it is most probable for
            (``score``) or any (``random``); see :class:`~libmoe.routers.places.Places`.
        overflow: what a token beyond capacity gets from the layer: ``zero`` (the paper), or ``identity``, its
            own input times its gate.
        init_scale: s of the truncated-normal initialisation of router and experts, 0.1 in the paper; ``None``
            keeps the library's, under which all methods of a comparison start alike.
        expert_dropout: dropout inside experts (0.4 in the paper's fine-tuning).
        router_precision: ``fp32`` whatever the activations are (selective precision, §2.4), or ``input``.
    """

    top_k: int = 1
    selection: Literal["best", "sampled"] = "best"
    jitter: float = 0.01
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    min_capacity: int = 0
    queue: Queue = "position"
    overflow: Literal["zero", "identity"] = "zero"
    init_scale: float | None = None
    expert_dropout: float = 0.0
    router_precision: Precision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != 1:
            raise ConfigError(
                f"top_k={self.top_k}: switch sends a token to one expert; use 1, or the method 'smoe'"
            )

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts, precision=self.router_precision)
        if self.init_scale is not None:
            truncated_normal_(gate.weight, self.init_scale)
        return TopKRouter(
            site.dim,
            self.num_experts,
            top_k=1,
            renormalise=False,
            noise=InputJitter(self.jitter) if self.jitter else None,
            selection_noise=GumbelNoise() if self.selection == "sampled" else None,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            places=Places(minimum=self.min_capacity, queue=self.queue),
            gate=gate,
        )

    def build_experts(self, site: Site) -> Experts:
        if self.overflow == "identity" and site.out != site.dim:
            raise ConfigError(
                f"{site.path}: overflow='identity' returns a token's input, and this layer turns {site.dim} features "
                f"into {site.out}; use overflow='zero', or leave it out with where="
            )
        kind = IdentityOverflow if self.overflow == "identity" else FFNExperts
        experts = self.ffn_experts(site, self.num_experts, kind, dropout=self.expert_dropout)
        if self.init_scale is not None:
            truncated_normal_(experts.w_in, self.init_scale)
            truncated_normal_(experts.w_out, self.init_scale)
        return experts
