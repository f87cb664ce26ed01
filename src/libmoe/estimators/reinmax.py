"""ReinMax: the gradient of a sampled choice to second order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.estimators.dense import DenseGradient, DenseGradientPlan

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ReinMax(DenseGradient):
    """The chosen expert gets weight 1, and weights the gradient ``2 J(q) - J(p) / 2`` (Liu et al., arXiv 2304.08612).

    p is the softmax of the logits, ``q = (p + D) / 2`` with D the choice as a one-hot vector, and J the Jacobian of the
    softmax where it has that value.  If D is drawn from p, the expectation is the gradient of the expected loss, and
    exactly so for a loss that is quadratic in the mixture; straight-through is a first-order estimate.  So it wants a
    router that samples one expert (``selection_noise`` of :class:`~libmoe.routers.topk.TopKRouter`), and, as
    :class:`~libmoe.estimators.dense.DenseGradient`, computes all N while training.
    """

    def apply(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan, logits_TN = routing.plan, routing.logits_TN
        if not isinstance(plan, SparsePlan) or plan.k != 1 or logits_TN is None:
            raise ConfigError("the reinmax estimator needs a router with logits that chooses one expert; set top_k=1")
        hard_A = torch.ones_like(plan.weight_A)
        if not ctx.training:
            return replace(routing, plan=replace(plan, weight_A=hard_A))
        p_TN = logits_TN.softmax(dim=-1)
        hard_TN = torch.zeros_like(p_TN).index_put((plan.token_A, plan.expert_A), hard_A.to(p_TN.dtype))
        q_TN = ((p_TN.detach() + hard_TN) / 2).log()
        q_TN = (q_TN + logits_TN - logits_TN.detach()).softmax(dim=-1)  # the value q, with its Jacobian
        slope_TN = 2 * q_TN - p_TN / 2
        zero_TN = slope_TN - slope_TN.detach()
        weight_A = (hard_TN + zero_TN)[plan.token_A, plan.expert_A]
        return replace(routing, plan=DenseGradientPlan.of(replace(plan, weight_A=weight_A), zero_TN))
