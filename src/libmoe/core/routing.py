"""Routing: what a router hands over, and the contract of routers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.plan import Plan


@dataclass
class Routing:
    """A router's answer for T tokens and N experts.

    Selection scores, combine weights and the probabilities that losses use are three different things: the
    selection and the weights are in ``plan``; ``scores_TN`` is what losses see; ``logits_TN`` is the raw
    output of the gate (z-losses, gating residuals).  ``extras`` holds what one method alone needs.
    """

    plan: Plan
    logits_TN: Tensor | None = None
    scores_TN: Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)


class Router(nn.Module):
    """Base of all routers: implement :meth:`route`.

    Class attributes are declarations that ``libmoe.testing.check_router`` audits:

    * ``causal``: the plan of a token never depends on later tokens of its sequence;
    * ``batch_independent``: the plan of a sequence never depends on the other sequences of the batch.

    ``decided_by`` names the side input whose number, in evaluation, is all that a token's plan depends on; ``None``
    where it depends on more.
    """

    causal: bool = True
    batch_independent: bool = True
    decided_by: str | None = None

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        """Decide for ``x_TD [T, D]``.  Side inputs (ids, mask, positions, earlier layers) come from ``ctx``."""
        raise NotImplementedError(f"{type(self).__name__} defines no route()")

    def forward(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        return self.route(x_TD, ctx)

    def expected_load(self) -> list[float]:
        """Rows per token that each expert gets when routing goes as intended (for cost accounting)."""
        raise NotImplementedError(f"{type(self).__name__} defines no expected_load()")

    def training_load(self) -> list[float]:
        """The same while training, where more or fewer experts work than afterwards."""
        return self.expected_load()

    def more_training_flops(self) -> float:
        """Forward FLOPs per token of products that the router computes while training alone (for cost accounting)."""
        return 0.0

    def mixing_flops(self, dim: int) -> float:
        """Forward FLOPs per token of mixing the experts' outputs (for cost accounting)."""
        return 2.0 * sum(self.expected_load()) * dim
