"""Edits of what a router chooses from: k and the scores that selection looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention
from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ForceTopK(Intervention):
    """Use ``k`` experts per token whatever the router was trained with."""

    def __init__(self, k: int, layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        self.k = k

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        if self.k > scores_TN.shape[1]:
            raise ConfigError(f"cannot force k={self.k}: layer {ctx.index} has {scores_TN.shape[1]} experts")
        return scores_TN

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return self.k


class BanExperts(Intervention):
    """Never select the experts in ``experts`` (ablation of an expert).

    Raises ConfigError in the forward pass when a router selects one all the same, because too few others are left
    or because it does not select by scores.
    """

    def __init__(self, experts: Iterable[int], layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.experts = sorted(set(experts))

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        num_experts = scores_TN.shape[1]
        if self.experts and self.experts[-1] >= num_experts:
            raise ConfigError(
                f"cannot ban expert {self.experts[-1]}: layer {ctx.index} has experts 0..{num_experts - 1}"
            )
        scores_TN = scores_TN.clone()
        scores_TN[:, self.experts] = float("-inf")
        return scores_TN

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        chosen_N = routing.plan.load_N()
        banned = [e for e in self.experts if e < len(chosen_N) and chosen_N[e] > 0]
        if banned:
            raise ConfigError(
                f"layer {ctx.index} selects expert {banned[0]} although it is banned: its router has too few other "
                f"experts for its k, or does not select by scores"
            )
        return routing


class DropTopRanked(Intervention):
    """Hide each token's ``n`` best experts from selection, so that the next best are used (023's drop-top-1)."""

    def __init__(self, n: int = 1, layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}")
        self.n = n
        self._memo = f"top {n} hidden"

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        if self.n >= scores_TN.shape[1]:
            raise ConfigError(f"cannot drop the top {self.n} of {scores_TN.shape[1]} experts")
        hidden_TN = torch.zeros_like(scores_TN, dtype=torch.bool)
        hidden_TN.scatter_(1, scores_TN.topk(self.n, dim=1).indices, True)
        ctx.memo(self._memo, lambda: hidden_TN)
        return scores_TN.masked_fill(hidden_TN, float("-inf"))

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        hidden_TN = ctx.recall(self._memo)
        plan = routing.plan
        if hidden_TN is None or not isinstance(plan, SparsePlan):
            raise ConfigError(
                f"cannot drop top ranked experts in layer {ctx.index}: its router does not rank scores"
            )
        if hidden_TN[plan.token_A, plan.expert_A].any():
            raise ConfigError(
                f"cannot drop the top {self.n} of {plan.num_experts} experts in layer {ctx.index}: "
                f"fewer than k are left"
            )
        return routing
