"""Routers without a gate: what is chosen does not depend on what the token has become."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing


class UngatedRouter(Router):
    """The k experts of highest :meth:`priority`, each with weight 1/k; no parameters, logits or scores.

    Raises:
        ConfigError: k is not in 1..N.
    """

    def __init__(self, num_experts: int, top_k: int = 1) -> None:
        super().__init__(num_experts)
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        self.top_k = top_k

    def priority(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """float32 ``[T, N]`` on the device of ``x_TD``."""
        raise NotImplementedError(f"{type(self).__name__} defines no priority()")

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        def select() -> Tensor:
            priority_TN = ctx.edit_scores(self.priority(x_TD, ctx))
            return priority_TN.topk(ctx.top_k(self.top_k), dim=-1).indices

        expert_TK = ctx.memo("select", select)
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        weight_TK = torch.full(expert_TK.shape, 1 / expert_TK.shape[1], dtype=dtype, device=x_TD.device)
        return Routing(SparsePlan.from_topk(expert_TK, weight_TK, self.num_experts))

    def expected_load(self) -> list[float]:
        return [self.top_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}"
