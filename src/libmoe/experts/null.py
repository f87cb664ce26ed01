"""Experts that cost (almost) nothing: zero, copy and constant (MoE++, arXiv 2410.07348, eq. 3-5)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.experts.base import Experts

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


class ZeroExperts(Experts):
    """``E(x) = 0``: choosing one discards that share of the layer's output."""

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return torch.zeros_like(x_RD)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def materialise(self, expert: int) -> nn.Module:
        return ZeroExperts(1)

    def flops_per_row(self) -> list[float]:
        return [0.0] * self.num_experts


class CopyExperts(Experts):
    """``E(x) = x``: choosing one skips the layer for that share."""

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return x_RD

    def materialise(self, expert: int) -> nn.Module:
        return nn.Identity()

    def flops_per_row(self) -> list[float]:
        return [0.0] * self.num_experts


class ConstantExperts(Experts):
    """``E(x) = a1 x + a2 v`` with ``[a1, a2] = softmax(W x)``; each expert has its own W ``[2, D]`` and v ``[D]``."""

    def __init__(self, num_experts: int, dim: int, init_std: float = 0.02) -> None:
        super().__init__(num_experts)
        self.mix = nn.Parameter(torch.randn(num_experts, 2, dim) * init_std)
        self.constant = nn.Parameter(torch.randn(num_experts, dim))

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        parts = []
        mixes, constants = self.mix.unbind(0), self.constant.unbind(0)
        for e, (s, t) in enumerate(pairwise(segments.bounds)):
            a_R2 = F.linear(x_RD[s:t], mixes[e]).softmax(dim=-1)
            parts.append(a_R2[:, :1] * x_RD[s:t] + a_R2[:, 1:] * constants[e])
        return torch.cat(parts)

    def materialise(self, expert: int) -> nn.Module:
        with torch.device("meta"):
            copy = ConstantExperts(1, self.mix.shape[2])
        copy.mix = nn.Parameter(self.mix[expert : expert + 1].detach().clone())
        copy.constant = nn.Parameter(self.constant[expert : expert + 1].detach().clone())
        return copy

    def forward(self, x: Tensor) -> Tensor:
        """Dense view of a single constant expert (see :meth:`materialise`)."""
        a = F.linear(x, self.mix[0]).softmax(dim=-1)
        return a[..., :1] * x + a[..., 1:] * self.constant[0]

    def flops_per_row(self) -> list[float]:
        return [4.0 * self.mix.shape[2]] * self.num_experts
