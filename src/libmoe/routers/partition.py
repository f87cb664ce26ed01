"""Tokens dealt out to experts at random in equal parts, and one mean expert afterwards (EWA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.plan import MergePlan, SparsePlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class UniformPartitionRouter(Router):
    """Random uniform partition in training; outside it the mean of all experts (arXiv 2308.06093).

    While training the real tokens of a forward pass are put into a random order, new for each layer, and dealt out one
    by one: each expert gets ``floor`` or ``ceil`` of T / N, whatever the tokens are, with weight 1.  Nothing is learned
    and there are no parameters, logits or scores.  Outside training all tokens pass the expert whose parameters are the
    experts' mean, the dense FFN that is left in the end.
    """

    def deal(self, num_tokens: int, ctx: LayerContext, device: torch.device) -> Tensor:
        """int64 ``[T]``: the expert of each token; padding is dealt out by itself."""
        generator = ctx.generator("partition", device)
        order_T = torch.randperm(num_tokens, generator=generator, device=device)
        if ctx.mask_T is not None:
            order_T = torch.cat([order_T[ctx.mask_T[order_T]], order_T[~ctx.mask_T[order_T]]])
        # Who comes first may get one more, so this is drawn as well.
        first = torch.randint(self.num_experts, (1,), generator=generator, device=device)
        turn_T = (torch.arange(num_tokens, device=device) + first) % self.num_experts
        return torch.empty_like(order_T).scatter(0, order_T, turn_T)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        if not self.training:
            gate_GN = torch.full((1, self.num_experts), 1 / self.num_experts, dtype=dtype, device=x_TD.device)
            return Routing(MergePlan(gate_GN, len(x_TD)))
        expert_T = ctx.memo("partition", lambda: self.deal(len(x_TD), ctx, x_TD.device))
        weight_T1 = torch.ones(len(x_TD), 1, dtype=dtype, device=x_TD.device)
        return Routing(SparsePlan.from_topk(expert_T.unsqueeze(1), weight_T1, self.num_experts))

    def expected_load(self) -> list[float]:
        return [1 / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"
