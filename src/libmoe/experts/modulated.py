"""Experts that scale and shift features, before one network that all of them share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFN
from libmoe.ops import AUTO, grouped_linear
from libmoe.ops.merged import merged_linear

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class ModulationExperts(Experts):
    """``E_i(x) = gamma_i(x) * x + beta_i(x)`` with ``gamma_i``, ``beta_i`` linear in x, elementwise (FiLM).

    They begin near the identity: biases of gamma are 1, of beta 0.

    Parameters: ``w [N, 2D, D]`` and ``b [N, 2D]``, gamma's rows first.
    """

    def __init__(self, num_experts: int, dim: int, init_std: float = 0.02, backend: str = AUTO) -> None:
        super().__init__(num_experts)
        self.backend = backend
        self.w = nn.Parameter(torch.randn(num_experts, 2 * dim, dim) * init_std)
        self.b = nn.Parameter(torch.cat([torch.ones(num_experts, dim), torch.zeros(num_experts, dim)], dim=1))

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return _modulate(x_RD, grouped_linear(x_RD, self.w, segments, self.b, self.backend))

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return _modulate(x_GLD, merged_linear(x_GLD, gate_GN, self.w, self.b))

    def materialise(self, expert: int) -> Modulation:
        return Modulation(self.w[expert].detach().clone(), self.b[expert].detach().clone())

    def flops_per_row(self) -> list[float]:
        return [2.0 * self.w[0].numel()] * self.num_experts


class ModulatedFFN(Experts):
    """``y = FFN(sum_i w_i (gamma_i(x) * x + beta_i(x)))``: modulations are mixed, and then *one* FFN runs for a token.

    MoFME (arXiv 2312.16610 §3.2).  Not the weighted sum of what each expert alone would give, ``FFN(E_i(x))``, unless
    the FFN is linear.
    """

    def __init__(self, modulations: ModulationExperts, body: FFN) -> None:
        super().__init__(modulations.num_experts)
        self.modulations, self.body, self.out_dim = modulations, body, body.w_out.shape[0]

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        return self.body(plan.execute(self.modulations, x_TD, x_AD))

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return self.body(self.modulations.forward_rows(x_RD, segments))

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return self.body(self.modulations.forward_merged(x_GLD, gate_GN))

    def materialise(self, expert: int) -> nn.Module:
        return nn.Sequential(self.modulations.materialise(expert), copy.deepcopy(self.body))

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        return self.modulations.parameters_of(expert)

    def _body_flops(self) -> float:
        return 2.0 * (self.body.w_in.numel() + self.body.w_out.numel())

    def flops_per_row(self) -> list[float]:
        return [flops + self._body_flops() for flops in self.modulations.flops_per_row()]

    def flops_per_token(self, load_N: Sequence[float]) -> float:
        return self.modulations.flops_per_token(load_N) + self._body_flops()


class Modulation(nn.Module):
    """One expert of :class:`ModulationExperts`."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return _modulate(x, F.linear(x, self.w, self.b))


def _modulate(x: Tensor, both: Tensor) -> Tensor:
    gamma, beta = both.chunk(2, dim=-1)
    return gamma * x + beta
