"""The MoA layer: an MoE layer whose experts are attention heads, given the attention that they work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Plan, SparsePlan
from libmoe.core.routing import Router
from libmoe.estimators.base import Estimator
from libmoe.experts.heads import Attention, HeadExperts
from libmoe.layers.moe import MoELayer
from libmoe.losses.base import Loss


class MoALayer(MoELayer):
    """``y = sum_i S_i heads_i(x, attention)``: queries and output projections of a mixture of attention heads.

    Routing, losses, estimators, records and interventions are those of every MoE layer.  A token's own hidden state
    decides which experts ask; what they read is not routed, so that a token's choice changes no other token.

    Args:
        router: of sparse plans, with as many experts as there are.
        experts, losses, estimator, index: as in :class:`~libmoe.layers.moe.MoELayer`.
    """

    experts: HeadExperts

    def __init__(
        self,
        router: Router,
        experts: HeadExperts,
        *,
        losses: Sequence[Loss] = (),
        estimator: Estimator | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(router, experts, losses=losses, estimator=estimator, index=index)

    def forward(self, hidden_states: Tensor, attention: Attention) -> Tensor:  # type: ignore[override]
        """``[..., D]``; ``attention`` takes queries of the flattened tokens (:data:`libmoe.experts.heads.Attention`).

        Raises:
            ConfigError: the router's plan is not sparse.
        """
        attending = _Attending(self.experts, attention)
        return self.run(hidden_states, lambda x_TD, routing: attending.execute(x_TD, routing.plan))

    def run_given(self, hidden_states: Tensor, *given: Any) -> None:
        """Attention, with the heads of one expert for each token."""
        (attention,) = given
        tokens = hidden_states.shape[:-1].numel()
        attention(hidden_states.new_zeros(tokens, self.experts.heads, self.experts.head_dim))


@dataclass
class _Attending:
    """The experts and one call's attention, driven by a plan as experts are."""

    experts: HeadExperts
    attention: Attention

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        if type(plan) is SparsePlan:
            return self.experts.attend(x_TD, plan, self.attention)
        if isinstance(plan, SparsePlan):  # it makes a plan of its own for the experts
            return plan.execute(cast("Any", self), x_TD, x_AD)
        raise ConfigError(
            f"attention heads are chosen by token, and this router makes a {plan.kind} plan; use one that chooses "
            "experts for each token"
        )
