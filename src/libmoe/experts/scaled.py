"""Experts whose output has a learned size for each feature."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.experts.base import Experts
from libmoe.experts.wrapped import WrappedExperts

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class ChannelScale(nn.Module):
    """``omega * x`` with omega ``[D]``, which begins as 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.omega.to(x.dtype)


class ScaledExperts(WrappedExperts):
    """``omega * E_i(x)``, one omega for all experts (SparseMixer, arXiv 2310.00811 §4).

    Args:
        experts: what is scaled.
        dim: width of their output.
    """

    def __init__(self, experts: Experts, dim: int) -> None:
        super().__init__(experts)
        self.scale, self.out_dim = ChannelScale(dim), dim

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        return self.scale(super().execute(x_TD, plan, x_AD))

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return self.scale(super().forward_rows(x_RD, segments))

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return self.scale(super().forward_merged(x_GLD, gate_GN))

    def materialise(self, expert: int) -> nn.Module:
        return nn.Sequential(super().materialise(expert), copy.deepcopy(self.scale))
