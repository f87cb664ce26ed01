"""Exploration noise for gates: on the input, on the logits, of a learned size, or one that samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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

    def draw(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor | None]:
        """Changed logits, and the standard deviation ``[T, N]`` of what was added where that is normal."""
        return self.logits(logits_TN, x_TD, ctx), None


def noisy(
    gate: Callable[[Tensor, LayerContext], Tensor], noise: Noise | None, x_TD: Tensor, ctx: LayerContext
) -> tuple[Tensor, dict[str, Any]]:
    """Logits of ``gate`` with noise and as interventions edit them, and what losses may want to know of the noise, for
    ``Routing.extras``.

    Where the noise is normal that is ``clean_TN``, the logits without it, and ``noise_std_TN``.
    """
    if noise is None:
        return ctx.edit_logits(gate(x_TD, ctx)), {}
    clean_TN = gate(noise.inputs(x_TD, ctx), ctx)
    logits_TN, std_TN = noise.draw(clean_TN, x_TD, ctx)
    return ctx.edit_logits(logits_TN), {} if std_TN is None else {"clean_TN": clean_TN, "noise_std_TN": std_TN}


class NormalNoise(Noise):
    """Base of noise ``std * N(0, 1)`` on the logits."""

    def std_of(self, logits_TN: Tensor, x_TD: Tensor) -> Tensor:
        """``[T, N]``, or what broadcasts to it."""
        raise NotImplementedError(f"{type(self).__name__} defines no std_of()")

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return self.draw(logits_TN, x_TD, ctx)[0]

    def draw(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor | None]:
        std_TN = self.std_of(logits_TN, x_TD)
        generator = ctx.generator("noise", logits_TN.device)
        kind = {"device": logits_TN.device, "dtype": logits_TN.dtype}
        return logits_TN + std_TN * torch.randn(logits_TN.shape, generator=generator, **kind), std_TN


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


class GaussianNoise(NormalNoise):
    """``logits + std * N(0, 1)``."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def std_of(self, logits_TN: Tensor, x_TD: Tensor) -> Tensor:
        return torch.full_like(logits_TN[:, :1], self.std)


class GumbelNoise(Noise):
    """``logits + Gumbel(0, 1)``: the largest of them is a draw from ``softmax(logits)``."""

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        generator = ctx.generator("gumbel", logits_TN.device)
        shape, kind = logits_TN.shape, {"device": logits_TN.device, "dtype": logits_TN.dtype}
        u_TN = torch.rand(shape, generator=generator, **kind).clamp_min(torch.finfo(logits_TN.dtype).tiny)
        return logits_TN - (-u_TN.log()).log()


class UniformNoise(Noise):
    """``logits + width * U[0, 1]`` (noisy top-1, arXiv 2208.02813 §4): equal logits choose uniformly at random.

    Args:
        width: of the interval; a logit ahead of another by more than this is never overtaken.
        shared: all tokens of a sequence get the same noise, so that a sequence that is judged as one stays one.
    """

    def __init__(self, width: float = 1.0, shared: bool = False) -> None:
        super().__init__()
        self.width, self.shared = width, shared

    def logits(self, logits_TN: Tensor, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        generator = ctx.generator("uniform", logits_TN.device)
        kind = {"device": logits_TN.device, "dtype": logits_TN.dtype}
        u_TN = torch.rand(logits_TN.shape, generator=generator, **kind)
        return logits_TN + self.width * (u_TN[ctx.sequence_T.to(u_TN.device)] if self.shared else u_TN)


class LearnedNoise(NormalNoise):
    """``logits + (softplus(W_noise x) + floor) * N(0, 1)`` (noisy top-k gating, arXiv 1701.06538 eq. 4).

    Args:
        floor: the least standard deviation; 0 in the paper, 0.01 in implementations of it.
    """

    def __init__(self, dim: int, num_experts: int, floor: float = 0.0) -> None:
        super().__init__()
        self.weight, self.floor = nn.Parameter(torch.zeros(num_experts, dim)), floor

    def std_of(self, logits_TN: Tensor, x_TD: Tensor) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.softplus(F.linear(x_TD.to(logits_TN.dtype), self.weight.to(logits_TN.dtype))) + self.floor
