"""Inference-time edits of routing: one mechanism for all of them.

An intervention is passed to :func:`libmoe.core.context.options` and sees every MoE layer of the forward pass.
It may change k, the scores that selection looks at, or the finished routing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.plan import Plan
    from libmoe.core.routing import Routing


class Intervention:
    """Base: override what you change; ``layers`` limits it to some MoE layers (``None``: all)."""

    def __init__(self, layers: Iterable[int] | None = None) -> None:
        self.layers = None if layers is None else frozenset(layers)

    def applies(self, ctx: LayerContext) -> bool:
        return self.layers is None or ctx.index in self.layers

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return k

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        return scores_TN

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        return routing


class ForceTopK(Intervention):
    """Use ``k`` experts per token whatever the router was trained with."""

    def __init__(self, k: int, layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        self.k = k

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return self.k


class BanExperts(Intervention):
    """Never select the experts in ``experts`` (ablation of an expert)."""

    def __init__(self, experts: Iterable[int], layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.experts = sorted(set(experts))

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        num_experts = scores_TN.shape[1]
        if self.experts and self.experts[-1] >= num_experts:
            raise ConfigError(f"cannot ban expert {self.experts[-1]}: layer {ctx.index} has experts 0..{num_experts - 1}")
        scores_TN = scores_TN.clone()
        scores_TN[:, self.experts] = float("-inf")
        return scores_TN


class DropTopRanked(Intervention):
    """Hide each token's ``n`` best experts from selection, so that the next best are used (023's drop-top-1)."""

    def __init__(self, n: int = 1, layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.n = n

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        if self.n >= scores_TN.shape[1]:
            raise ConfigError(f"cannot drop the top {self.n} of {scores_TN.shape[1]} experts")
        return scores_TN.scatter(1, scores_TN.topk(self.n, dim=1).indices, float("-inf"))


class ReplayPlans(Intervention):
    """Use recorded plans, weights included, instead of the router's own decision."""

    def __init__(self, plans: Mapping[int, Plan]) -> None:
        super().__init__(plans.keys())
        self.plans = dict(plans)

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = self.plans[ctx.index]
        if plan.num_tokens != routing.plan.num_tokens:
            raise ConfigError(
                f"recorded plan of layer {ctx.index} is for {plan.num_tokens} tokens, the batch has "
                f"{routing.plan.num_tokens}; replay it on the batch it was recorded on"
            )
        device = next((t.device for t in vars(routing.plan).values() if isinstance(t, Tensor)), torch.device("cpu"))
        return replace(routing, plan=plan.map(lambda t: t.to(device)))
