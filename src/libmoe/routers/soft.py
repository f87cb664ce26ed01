"""Soft routing: every slot is a mixture of all tokens, every token a mixture of all slots (Soft MoE)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SoftPlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.routers.noise import Noise

Mixing = Literal["soft", "uniform", "identity"]


def _unit(x: Tensor, dim: int) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=dim, keepdim=True) + 1e-6)


def _softmax_over_tokens(logits_GLS: Tensor, padding_GL: Tensor, padded: bool) -> Tensor:
    if not padded:
        return logits_GLS.softmax(dim=1)
    padding_GL1 = padding_GL.unsqueeze(2)
    # The lowest finite number, not -inf: a row that is all padding must give 0, not NaN.
    masked_GLS = logits_GLS.masked_fill(padding_GL1, torch.finfo(logits_GLS.dtype).min)
    return masked_GLS.softmax(dim=1).masked_fill(padding_GL1, 0.0)


def _pairs(kind: Mixing, padding_GL: Tensor, slots: int) -> Tensor:
    """bool ``[G, L, S]``: a real token and a slot belong together, always or where their numbers are equal."""
    real_GL = ~padding_GL
    if kind == "uniform":
        return real_GL.unsqueeze(2).expand(-1, -1, slots)
    number_GL = real_GL.cumsum(dim=1) - 1
    tokens = int(number_GL.max()) + 1 if number_GL.numel() else 0
    if tokens > slots:
        raise ConfigError(f"mixing 'identity' has {slots} slots for {tokens} tokens; raise slots_per_expert")
    own_GLS = number_GL.unsqueeze(2) == torch.arange(slots, device=padding_GL.device)
    return own_GLS & real_GL.unsqueeze(2)


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
        dispatch, combine: how tokens are mixed into slots and slots into tokens.  ``soft`` as above; the paper's
            ablations are ``uniform``, the plain mean of all real tokens or of all slots, on either side or both, and
            ``identity`` on both: the i-th real token is slot i and slot i is its output.  Slots beyond the last token
            are then zero vectors that no token sees; more tokens than slots are refused.  Where no side is soft there
            is nothing to learn, and no phi; where both are identities the router is causal.
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
        dispatch: Mixing = "soft",
        combine: Mixing = "soft",
        rows_per_token: float = 1.0,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(num_experts)
        if slots_per_expert < 1:
            raise ConfigError(f"slots_per_expert must be at least 1, got {slots_per_expert}")
        for side, kind in (("dispatch", dispatch), ("combine", combine)):
            if kind not in get_args(Mixing):
                raise unknown(f"value of {side}", kind, get_args(Mixing))
        self.slots_per_expert, self.rows_per_token = slots_per_expert, rows_per_token
        self.dispatch, self.combine = dispatch, combine
        self.causal = dispatch == combine == "identity"
        soft = "soft" in (dispatch, combine)
        phi = nn.Parameter(torch.randn(dim, num_experts, slots_per_expert) * dim**-0.5)
        self.phi: nn.Parameter | None = phi if soft else None
        self.scale = nn.Parameter(torch.ones(())) if normalise and soft else None
        self.noise = noise

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """``[T, S]``, slots ordered by expert, in at least float32."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        assert self.phi is not None
        x_TD, phi_DS = x_TD.to(dtype), self.phi.to(dtype).flatten(1)
        if self.scale is not None:
            x_TD, phi_DS = _unit(x_TD, 1), self.scale.to(dtype) * _unit(phi_DS, 0)
        logits_TS = x_TD @ phi_DS
        if self.training and self.noise is not None:
            logits_TS = self.noise.logits(logits_TS, x_TD, ctx)
        return logits_TS

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        groups, length = ctx.batch_shape
        slots = self.num_experts * self.slots_per_expert
        padding_GL = x_TD.new_zeros(groups, length, dtype=torch.bool)
        if ctx.mask_T is not None:
            padding_GL = ~ctx.mask_T.view(groups, length)
        logits_TS = None if self.phi is None else self.logits(x_TD, ctx)
        logits_GLS = None if logits_TS is None else logits_TS.view(groups, length, slots)
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        if self.dispatch == "soft" and logits_GLS is not None:
            dispatch_GLS = _softmax_over_tokens(logits_GLS, padding_GL, ctx.mask_T is not None)
        else:
            pairs_GLS = _pairs(self.dispatch, padding_GL, slots).to(dtype)
            dispatch_GLS = pairs_GLS / pairs_GLS.sum(dim=1, keepdim=True).clamp_min(1)
        if self.combine == "soft" and logits_GLS is not None:
            combine_GLS = logits_GLS.softmax(dim=2)
        else:
            pairs_GLS = _pairs(self.combine, padding_GL, slots).to(dtype)
            combine_GLS = pairs_GLS / pairs_GLS.sum(dim=2, keepdim=True).clamp_min(1)
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
