"""Experts that are vectors: the values of a key-value memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.plan import SparsePlan
from libmoe.experts.base import Experts

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class ValueExperts(Experts):
    """``E_i(x) = v_i``: a layer's output is the weighted sum of the chosen values, as in a memory.

    Whole plans run as one weighted sum of table rows; no row is made for each assignment.

    Args:
        dim: width of a value.
        init_std: of the values; ``None`` for ``N^-1/2``.

    Parameters: ``value [N, D]``.
    """

    def __init__(self, num_experts: int, dim: int, init_std: float | None = None) -> None:
        super().__init__(num_experts)
        std = num_experts**-0.5 if init_std is None else init_std
        self.out_dim = dim
        self.value = nn.Parameter(torch.randn(num_experts, dim) * std)

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        if type(plan) is not SparsePlan or plan.scale_input:
            return plan.execute(self, x_TD, x_AD)
        acc = torch.promote_types(self.value.dtype, torch.float32)
        weight_A = plan.weight_A if plan.kept_A is None else torch.where(plan.kept_A, plan.weight_A, 0)
        expert_A, weight_A = plan.expert_A, weight_A.to(acc)
        count_T = torch.bincount(plan.token_A, minlength=plan.num_tokens)
        if plan.k is None:
            order = torch.argsort(plan.token_A, stable=True)
            expert_A, weight_A = expert_A[order], weight_A[order]
        y_TD = F.embedding_bag(
            expert_A,
            self.value.to(acc),
            offsets=count_T.cumsum(0) - count_T,
            mode="sum",
            per_sample_weights=weight_A,
        )
        return y_TD.to(x_TD.dtype)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        count_N = segments.offsets(x_RD.device).diff()
        expert_R = torch.repeat_interleave(count_N, output_size=len(x_RD))
        return self.value[expert_R].to(x_RD.dtype)

    def materialise(self, expert: int) -> nn.Module:
        return Value(self.value[expert].detach().clone())

    def flops_per_row(self) -> list[float]:
        return [0.0] * self.num_experts


class Value(nn.Module):
    """The same vector for every input."""

    def __init__(self, value_D: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value_D)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], len(self.value)) + self.value.to(x.dtype)
