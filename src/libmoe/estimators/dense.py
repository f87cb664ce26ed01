"""A gradient for every expert's score: all experts are computed while training, the chosen ones alone count."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.estimators.base import Estimator

if TYPE_CHECKING:
    from torch import nn

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Router, Routing


@dataclass(eq=False)
class DenseGradientPlan(SparsePlan):
    """A sparse plan whose other experts enter with weights that are 0 and have a gradient: ``zero_TN``.

    Its value, its load and its assignments are those of the sparse plan.
    """

    kind: ClassVar[str] = "dense-gradient"

    zero_TN: Tensor | None = None

    @classmethod
    def of(cls, plan: SparsePlan, zero_TN: Tensor) -> DenseGradientPlan:
        """Raises ConfigError where weights multiply inputs, which 0 would change."""
        if plan.scale_input:
            raise ConfigError("dense gradients need weights on the experts' outputs; this router scales inputs")
        return cls(**{f.name: getattr(plan, f.name) for f in fields(SparsePlan)}, zero_TN=zero_TN)

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        if x_AD is not None or self.zero_TN is None:
            raise ConfigError("dense gradients need one input for all experts of a token")
        weight_A = self.weight_A if self.kept_A is None else self.weight_A.masked_fill(~self.kept_A, 0)
        chosen = self.token_A, self.expert_A
        others_TN = torch.ones_like(self.zero_TN).index_put(chosen, self.zero_TN.new_zeros(()))
        weight_TN = (self.zero_TN * others_TN).index_put(chosen, weight_A.to(self.zero_TN.dtype), accumulate=True)
        every_TN = torch.arange(self.num_experts, device=weight_TN.device).expand(self.num_tokens, -1)
        return experts.execute(x_TD, SparsePlan.from_topk(every_TN, weight_TN, self.num_experts))


class DenseGradient(Estimator):
    """The router learns from all experts, as if all were mixed: the straight-through form of ``y = sum_i s_i E_i(x)``.

    While training, an expert that is not chosen enters with weight ``s_i - stop_gradient(s_i)``: nothing in the forward
    pass, and ``<dL/dy, E_i(x)>`` as the gradient of its score.  Chosen experts keep their weight and its gradient.
    All N experts are computed then.  The scores are those that losses see.
    """

    def apply(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan, scores_TN = routing.plan, routing.scores_TN
        if not isinstance(plan, SparsePlan) or scores_TN is None:
            raise ConfigError("the dense estimator needs a sparse plan and scores of all experts")
        if not ctx.training:
            return routing
        return replace(routing, plan=DenseGradientPlan.of(plan, scores_TN - scores_TN.detach()))

    def training_load(self, router: Router) -> list[float]:
        return [1.0] * router.num_experts
