"""Edits of what a router chooses from: k and the scores that selection looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention, check_experts, experts_by_layer
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
        check_experts("ban", self.experts, scores_TN.shape[1], ctx)
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


class ForceExperts(Intervention):
    """Always select these experts; the router chooses the others and weighs all of them.

    Args:
        experts: pairs of layer and expert, at most k of each layer.

    Raises ConfigError in the forward pass when a router does not select one, because of its k or its own rules.
    """

    def __init__(self, experts: Iterable[tuple[int, int]]) -> None:
        self.experts = experts_by_layer(experts)
        super().__init__(self.experts)

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        check_experts("force", self.experts[ctx.index], scores_TN.shape[1], ctx)
        scores_TN = scores_TN.clone()
        scores_TN[:, self.experts[ctx.index]] = float("inf")
        return scores_TN

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        chosen_N = routing.plan.load_N()
        free = [e for e in self.experts[ctx.index] if chosen_N[e] < routing.plan.num_tokens]
        if free:
            raise ConfigError(
                f"layer {ctx.index} leaves out expert {free[0]} although it is forced: its k is too small, or its "
                f"router does not select by scores alone"
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


class SampleExperts(Intervention):
    """Draw the experts in proportion to their scores, without replacement, instead of taking the best.

    Each token's scores are handed out anew: the expert drawn first gets the highest, the second the next, and so on, so
    that a router's rule (top-k, a threshold, a cumulated probability) chooses from the values it is made for.  Weights
    come from the scores as they were.  Scores that may be negative are turned into proportions by a softmax.  One of
    the defences of arXiv 2402.05526: who cannot tell which experts a token uses cannot fill them.
    """

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        hidden_TN = scores_TN.isneginf()
        proportional = not bool((scores_TN[~hidden_TN] < 0).any())
        log_TN = scores_TN.log() if proportional else scores_TN
        generator = ctx.generator("sample experts", scores_TN.device)
        kind = {"device": scores_TN.device, "dtype": scores_TN.dtype}
        drawn_TN = torch.empty(scores_TN.shape, **kind).exponential_(generator=generator).log()
        # log p - log Exp(1) sorts like a draw without replacement; a hidden expert is drawn last.
        order_TN = (log_TN - drawn_TN).masked_fill(hidden_TN, float("-inf")).argsort(dim=1, descending=True)
        return torch.empty_like(scores_TN).scatter(1, order_TN, scores_TN.sort(dim=1, descending=True).values)
