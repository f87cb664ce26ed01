"""Exploration noise for gates: on the input, on the logits, or of a learned size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class Noise(nn.Module):
    """Base: change the gate's inputs or its logits while training."""

    def inputs(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return x_TD

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return logits_TN


def _normal(like: Tensor, ctx: LayerContext) -> Tensor:
    generator = ctx.generator("noise", like.device)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


class InputJitter(Noise):
    """``x * U[1 - eps, 1 + eps]`` elementwise in float32 (Switch Transformers, arXiv 2101.03961 §2.4)."""

    def __init__(self, eps: float = 0.01) -> None:
        super().__init__()
        self.eps = eps

    def inputs(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        generator = ctx.generator("jitter", x_TD.device)
        u_TD = torch.rand(x_TD.shape, generator=generator, device=x_TD.device, dtype=x_TD.dtype)
        return x_TD * (1 - self.eps + 2 * self.eps * u_TD)


class GaussianNoise(Noise):
    """``logits + std * N(0, 1)``."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return logits_TN + self.std * _normal(logits_TN, ctx)


class LearnedNoise(Noise):
    """``logits + softplus(W_noise x) * N(0, 1)`` (noisy top-k gating, arXiv 1701.06538 eq. 4)."""

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, dim))

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            size_TN = F.softplus(F.linear(x_TD.to(logits_TN.dtype), self.weight.to(logits_TN.dtype)))
        return logits_TN + size_TN * _normal(logits_TN, ctx)
