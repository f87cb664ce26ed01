"""The contract of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from libmoe.core.plan import Plan, Segments


class Experts(nn.Module):
    """N experts that map rows of width D to rows of width D.

    A kind implements :meth:`forward_rows`; the plan decides which rows that are.  A kind that needs the whole
    plan (experts shared by a group of experts, experts with several inputs) overrides :meth:`execute`.

    Attribute ``flops_per_pair``: forward FLOPs of a row for each token that it looks at, for experts that look at
    others than their own (for cost accounting).
    """

    flops_per_pair: float = 0.0

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

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        """What belongs to one expert alone: parameters, each with the expert's row where it is a stack of several.

        ``None`` stands for a tensor of its own.  There is nothing for a number beyond the last expert's; what experts
        share belongs to nobody.
        """
        if 0 <= expert < self.num_experts:
            for parameter in self.parameters():
                if parameter.dim() and len(parameter) == self.num_experts:
                    yield parameter, None if self.num_experts == 1 else expert

    def params_per_expert(self) -> list[int]:
        """Parameters that each expert has for itself; what is shared by all is not counted."""
        return [
            sum(p.numel() if row is None else p.shape[1:].numel() for p, row in self.parameters_of(expert))
            for expert in range(self.num_experts)
        ]

    def flops_per_row(self) -> list[float]:
        """Forward FLOPs (multiply and add are two) that one row costs in each expert's matrix products."""
        raise NotImplementedError(f"{type(self).__name__} defines no flops_per_row()")

    def flops_per_token(self, load_N: Sequence[float]) -> float:
        """Expected forward FLOPs of a token that gives expert i ``load_N[i]`` rows: their sum, or less where experts
        share work for it."""
        return sum(load * cost for load, cost in zip(load_N, self.flops_per_row(), strict=True))

    def idle_params(self, load_N: Sequence[float]) -> float:
        """Expected parameters that such a token leaves unused; what all experts share is always in use."""
        return sum(size * (1 - min(load, 1.0)) for size, load in zip(self.params_per_expert(), load_N, strict=True))

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"
