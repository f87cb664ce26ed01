"""Outputs of experts that are left out at random while training: of single experts, or of a token's whole MoE layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Masked = Literal["expert", "token"]


class OutputMaskingRouter(Router):
    """Any router; while training, what experts answer is masked with probability p (arXiv 2212.07571 §3).

    ``expert``: expert output masking, each (token, expert) by itself; ``token``: final output masking, all experts of
    a token at once.  What is left is *not* divided by 1 - p, nor are gates normalised again; outside training all
    outputs are multiplied by 1 - p instead, their expectation.  A masked answer is not computed, counts as load like
    one without a place, and what a layer shares is never masked.

    Args:
        base: a router that makes sparse plans whose weights multiply outputs.
        rate: p, from 0 to 1.
        masked: ``expert`` or ``token``.
    """

    def __init__(self, base: Router, rate: float = 0.2, masked: Masked = "expert") -> None:
        super().__init__(base.num_experts)
        if not 0 <= rate <= 1:
            raise ConfigError(f"mask_rate={rate} is a probability, from 0 to 1; 0 masks nothing")
        if masked not in get_args(Masked):
            raise unknown("value of masked", masked, get_args(Masked))
        if getattr(base, "scale_input", False):
            raise ConfigError(f"scale_input=True: weights of {type(base).__name__} multiply inputs; set it to False")
        self.base, self.rate, self.masked = base, rate, masked
        self.causal, self.batch_independent = base.causal, base.batch_independent

    def left(self, plan: SparsePlan, ctx: LayerContext) -> Tensor:
        """bool ``[A]`` of the assignments that are kept, where no others were dropped before."""
        device = plan.weight_A.device
        count = len(plan.token_A) if self.masked == "expert" else plan.num_tokens
        left = torch.rand(count, generator=ctx.generator("output masking", device), device=device) >= self.rate
        return left if self.masked == "expert" else left[plan.token_A]

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = self.base(x_TD, ctx)
        plan = routing.plan
        if not isinstance(plan, SparsePlan):
            raise ConfigError(f"{type(self.base).__name__} makes {plan.kind} plans, whose outputs cannot be masked")
        if not self.rate:
            return routing
        if not self.training:
            return replace(routing, plan=replace(plan, weight_A=plan.weight_A * (1 - self.rate)))
        left_A = ctx.memo("output masking", lambda: self.left(plan, ctx))
        kept_A = left_A if plan.kept_A is None else plan.kept_A & left_A
        return replace(routing, plan=replace(plan, kept_A=kept_A))

    def expected_load(self) -> list[float]:
        return self.base.expected_load()

    def training_load(self) -> list[float]:
        return [(1 - self.rate) * load for load in self.base.training_load()]

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, masked={self.masked!r}"
