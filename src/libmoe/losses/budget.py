"""A budget for experts: how much of the tokens' outputs may be theirs, over all layers together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import token_count

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ExpertShareLoss(Loss):
    """``L = | mean of g - budget |`` over all MoE layers and real tokens *together* (CMR, arXiv 2212.07571 §3).

    g is the share in ``routing.extras["share_T"]``.  One layer may therefore have g = 0 and another g = 1.  The loss
    is computed where the last of the layers is, which alone should have a coefficient; it looks at the routings of
    those before it in this forward pass, and passes its gradient on to them.

    Args:
        budget: b, from 0 to 1.
    """

    name = "expert_share"
    scopes = ("micro_batch",)

    def __init__(self, coefficient: float, budget: float = 0.8) -> None:
        super().__init__(coefficient, "micro_batch")
        if not 0 <= budget <= 1:
            raise ConfigError(f"budget={budget} is a share of the tokens' outputs, from 0 to 1")
        self.budget = budget

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        before = [r for index, r in sorted(ctx.forward.routings.items()) if index < ctx.index]
        layers = [r.extras for r in (*before, routing) if "share_T" in r.extras]
        if "share_T" not in routing.extras:
            raise ConfigError(f"{self.name} loss needs a router with a share for the experts; this one has none")
        share = sum(extras["share_T"].sum() for extras in layers)
        pairs = sum(extras["share_tokens"] for extras in layers)
        tokens = token_count(ctx, routing.extras["share_T"])
        return (share / pairs.clamp_min(1) - self.budget).abs() * tokens, tokens
