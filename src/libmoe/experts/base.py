"""The contract of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class Experts(nn.Module):
    """N experts that map rows of width D to rows of width D.

    A kind implements :meth:`forward_rows`; the plan decides which rows that are.  A kind that needs the whole
    plan (experts shared by a group of experts, experts with several inputs) overrides :meth:`execute`.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        if num_experts < 1:
            raise ConfigError(f"num_experts must be at least 1, got {num_experts}")
        self.num_experts = num_experts

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        """``y_TD``: run the experts as the plan says; ``x_AD`` gives each assignment an input of its own."""
        return plan.execute(self, x_TD, x_AD)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        """``y_RD``: rows of segment e through expert e.  R may be 0 and any segment may be empty."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward_rows()")

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        """``y_GLD``: group g through the expert whose parameters are the ``gate_GN[g]``-weighted average."""
        raise ConfigError(f"{type(self).__name__} cannot be averaged in parameter space; use FFNExperts")

    def materialise(self, expert: int) -> nn.Module:
        """A dense module that computes what expert number ``expert`` computes (weights are copied)."""
        raise NotImplementedError(f"{type(self).__name__} defines no materialise()")

    def params_per_expert(self) -> list[int]:
        """Parameters that belong to each expert alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no params_per_expert()")

    def flops_per_row(self) -> list[float]:
        """Forward FLOPs (multiply and add are two) that one row costs in each expert's matrix products."""
        raise NotImplementedError(f"{type(self).__name__} defines no flops_per_row()")

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"
