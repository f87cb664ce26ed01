"""A gate in front of a layer's experts: how much of a token's output is theirs, and how much the shared part's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router, Routing
from libmoe.routers.gates import LinearGate

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class ConditionalRouter(Router):
    """Any router, and beside it ``g(x) = sigmoid(w . x + b)`` for each token (CMR, arXiv 2212.07571 §3).

    The layer's output is ``(1 - g) shared(x) + g experts(x)``; who joins the two finds g in ``extras["share_T"]``,
    float32 ``[T]`` and 0 at padding.  ``extras["share_tokens"]`` is the number of real tokens, which a loss on the mean
    of g needs.  The plan is that of the router inside.

    Args:
        base: the router that chooses among the experts.
        dim: D.
        dropout: of g while training: 0 with this probability, and otherwise divided by 1 - dropout, so that it may
            exceed 1.
    """

    def __init__(self, base: Router, dim: int, dropout: float = 0.2) -> None:
        super().__init__(base.num_experts)
        if not 0 <= dropout < 1:
            raise ConfigError(f"share_dropout={dropout} must be at least 0 and below 1; 0 drops nothing")
        self.base, self.dropout = base, dropout
        self.share_gate = LinearGate(dim, 1, bias=True)
        self.causal, self.batch_independent = base.causal, base.batch_independent

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = self.base(x_TD, ctx)
        share_T1 = self.share_gate(x_TD).sigmoid()
        if self.training and self.dropout:
            generator = ctx.generator("share dropout", x_TD.device)
            u_T1 = torch.rand(share_T1.shape, generator=generator, device=x_TD.device)
            share_T1 = share_T1 * (u_T1 >= self.dropout) / (1 - self.dropout)
        share_T, mask_T = share_T1.squeeze(1), ctx.mask_T
        share_T = share_T if mask_T is None else share_T.masked_fill(~mask_T, 0)
        tokens = share_T.new_tensor(float(len(share_T))) if mask_T is None else mask_T.sum().to(share_T.dtype)
        return replace(routing, extras={**routing.extras, "share_T": share_T, "share_tokens": tokens})

    def expected_load(self) -> list[float]:
        return self.base.expected_load()

    def training_load(self) -> list[float]:
        return self.base.training_load()
