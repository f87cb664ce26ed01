"""All experts while training, the best of them afterwards (DS-MoE)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Policy = Literal["top-k", "threshold", "threshold-top-k"]


class DenseTrainingRouter(VariableKRouter):
    """``y = sum_i S_i E_i(x)`` with ``S = softmax(W x)`` over all i in training, over a few outside (arXiv 2404.05567).

    Every expert and the gate get exact gradients from every token: there is nothing to choose.  Which experts work
    outside training is the policy, and may be changed at any time (:meth:`use`):

    * ``top-k``: the k largest S;
    * ``threshold``: those with ``N S_i > eps``, as many as a token needs; none may be enough for an eps of 1 or more;
    * ``threshold-top-k``: the k largest, k being the mean number of experts above the threshold over the real tokens of
      the batch, rounded, at least 1.  A token then depends on all others.

    Args:
        dim, num_experts, top_k: D, N and k; with ``threshold`` the experts per token that costs are counted with.
        policy, threshold: as above; eps.
        renormalise: divide the weights in use by their sum; published without.
        options: those of :class:`~libmoe.routers.variable.VariableKRouter`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        policy: Policy = "top-k",
        threshold: float = 0.48,
        renormalise: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        self.renormalise = renormalise
        self._alone = self.causal, self.batch_independent  # as capacity leaves them
        self.use(policy, top_k, threshold)

    def use(self, policy: Policy, top_k: int | None = None, threshold: float | None = None) -> None:
        """Change the policy; what is ``None`` stays.

        Raises:
            ConfigError: no such policy, or a number out of range.
        """
        if policy not in get_args(Policy):
            raise unknown("value of policy", policy, get_args(Policy))
        if top_k is not None:
            if not 1 <= top_k <= self.num_experts:
                raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={self.num_experts}")
            self.top_k, self.expected_k = top_k, top_k
        if threshold is not None:
            if not threshold >= 0:
                raise ConfigError(f"threshold={threshold} must not be negative; 0 takes all experts")
            self.threshold = threshold
        self.policy = policy
        self.causal, self.batch_independent = (False, False) if policy == "threshold-top-k" else self._alone

    def choose(self, scores_TN: Tensor) -> Tensor:
        if self.training:
            return torch.ones_like(scores_TN, dtype=torch.bool)
        if self.policy == "top-k":
            return best(scores_TN, self.top_k)
        return self.num_experts * scores_TN > self.threshold

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        mask_TN = super().select(scores_TN, ctx)
        if self.training or self.policy != "threshold-top-k" or not len(mask_TN):
            return mask_TN
        count_T = mask_TN.sum(1).double()
        real_T = count_T if ctx.mask_T is None else count_T[ctx.mask_T]
        k = max(1, math.floor(float(real_T.mean()) + 0.5)) if len(real_T) else 1
        scores_TN = ctx.edit_scores(scores_TN)
        return best(scores_TN, k) & ~scores_TN.isneginf()

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, mask_TN: Tensor) -> Tensor:
        if not self.renormalise:
            return scores_TN
        chosen_TN = scores_TN * mask_TN
        return chosen_TN / chosen_TN.sum(1, keepdim=True).clamp_min(torch.finfo(chosen_TN.dtype).tiny)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = super().route(x_TD, ctx)
        plan = routing.plan
        if self.training and isinstance(plan, SparsePlan) and not ctx.edits_decisions:
            # All experts of one token after the other: the faster form, with sums in a fixed order.
            return replace(routing, plan=replace(plan, k=self.num_experts))
        return routing

    def training_load(self) -> list[float]:
        return [1.0] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, policy={self.policy!r}"


def best(scores_TN: Tensor, k: int) -> Tensor:
    """bool ``[T, N]``: the k highest scores of each token."""
    return torch.zeros_like(scores_TN, dtype=torch.bool).scatter(1, scores_TN.topk(k, dim=-1).indices, True)
