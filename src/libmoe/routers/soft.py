"""Soft routing: every slot is a mixture of all tokens, every token a mixture of all slots (Soft MoE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SoftPlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.routers.noise import Noise


def _unit(x: Tensor, dim: int) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=dim, keepdim=True) + 1e-6)


class SoftRouter(Router):
    """Dispatch and combine by softmax (Soft MoE, arXiv 2308.00951, algorithm 1 and §2.3).

    ``logits = unit(x) . (scale * unit(phi))`` for phi ``[D, N, p]``; dispatch is their softmax over the tokens
    of a sequence, combine their softmax over all S = N p slots jointly.  Slots mix x itself, not unit(x).
    phi does not depend on the length of the sequence.  A row of the batch is one sequence, also when documents
    are packed in it.  Padding is mixed into no slot.

    Args:
        dim, num_experts, slots_per_expert: D, N, p.
        normalise: unit vectors and the learned scale; without them logits grow with D and the softmaxes
            saturate.
        rows_per_token: S over the usual length of a sequence, for :meth:`expected_load`.
        noise: a :class:`~libmoe.routers.noise.Noise` on the logits while training.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        slots_per_expert: int = 1,
        *,
        normalise: bool = True,
        rows_per_token: float = 1.0,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(num_experts)
        if slots_per_expert < 1:
            raise ConfigError(f"slots_per_expert must be at least 1, got {slots_per_expert}")
        self.slots_per_expert, self.rows_per_token = slots_per_expert, rows_per_token
        self.phi = nn.Parameter(torch.randn(dim, num_experts, slots_per_expert) * dim**-0.5)
        self.scale = nn.Parameter(torch.ones(())) if normalise else None
        self.noise = noise

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """``[T, S]``, slots ordered by expert, in at least float32."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        x_TD, phi_DS = x_TD.to(dtype), self.phi.to(dtype).flatten(1)
        if self.scale is not None:
            x_TD, phi_DS = _unit(x_TD, 1), self.scale.to(dtype) * _unit(phi_DS, 0)
        logits_TS = x_TD @ phi_DS
        if self.training and self.noise is not None:
            logits_TS = self.noise.logits(logits_TS, x_TD, ctx)
        return logits_TS

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        groups, length = ctx.batch_shape
        logits_TS = self.logits(x_TD, ctx)
        logits_GLS = logits_TS.view(groups, length, self.num_experts * self.slots_per_expert)
        combine_GLS = logits_GLS.softmax(dim=2)
        if ctx.mask_T is None:
            dispatch_GLS = logits_GLS.softmax(dim=1)
        else:
            padding_GL1 = ~ctx.mask_T.view(groups, length, 1)
            # The lowest finite number, not -inf: a row that is all padding must give 0, not NaN.
            masked_GLS = logits_GLS.masked_fill(padding_GL1, torch.finfo(logits_GLS.dtype).min)
            dispatch_GLS = masked_GLS.softmax(dim=1).masked_fill(padding_GL1, 0.0)
        scores_TN = combine_GLS.reshape(groups * length, self.num_experts, self.slots_per_expert).sum(dim=-1)
        return Routing(SoftPlan(dispatch_GLS, combine_GLS, self.num_experts), logits_TS, scores_TN)

    def expected_load(self) -> list[float]:
        """Slots of an expert over tokens of a sequence of the usual length; longer sequences cost less per token."""
        return [self.rows_per_token / self.num_experts] * self.num_experts

    def mixing_flops(self, dim: int) -> float:
        """Tokens into slots, slots back into tokens."""
        return 4.0 * self.num_experts * self.slots_per_expert * dim

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, slots_per_expert={self.slots_per_expert}"
