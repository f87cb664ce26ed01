"""Experts around experts: something happens to the outputs, and the costs stay theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from libmoe.core.plan import SparsePlan
from libmoe.experts.base import Experts

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class WrappedExperts(Experts):
    """Base: computes and costs what ``experts`` do; a subclass changes what becomes of that."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(experts.num_experts)
        self.experts = experts
        if hasattr(experts, "out_dim"):
            self.out_dim: int = experts.out_dim

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        return self.experts.execute(x_TD, plan, x_AD)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        return self.experts.forward_rows(x_RD, segments)

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return self.experts.forward_merged(x_GLD, gate_GN)

    def materialise(self, expert: int) -> nn.Module:
        return self.experts.materialise(expert)

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        return self.experts.parameters_of(expert)

    def flops_per_row(self) -> list[float]:
        return self.experts.flops_per_row()

    def flops_per_token(self, load_N: Sequence[float]) -> float:
        return self.experts.flops_per_token(load_N)

    def idle_params(self, load_N: Sequence[float]) -> float:
        return self.experts.idle_params(load_N)


GRADIENT_SCALE = "gradient_scale"


class GradientScaledExperts(WrappedExperts):
    """The gradient of each output is multiplied by the assignment's ``extra_A["gradient_scale"]``, where there is one.

    Values do not change.  What the router's weights learn from does not either.
    """

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        scaled = isinstance(plan, SparsePlan) and GRADIENT_SCALE in plan.extra_A
        return plan.execute(self, x_TD, x_AD) if scaled else super().execute(x_TD, plan, x_AD)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        y_RD = super().forward_rows(x_RD, segments)
        if GRADIENT_SCALE not in segments.extra_R:
            return y_RD
        scale_R1 = segments.extra_R[GRADIENT_SCALE].unsqueeze(1).to(y_RD.dtype)
        scaled_RD = scale_R1 * y_RD
        return scaled_RD + (y_RD - scaled_RD).detach()
