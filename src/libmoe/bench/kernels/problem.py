"""Inputs, weights and routings of a case: the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from libmoe.bench.kernels.routing import Routing, make_routings
from libmoe.bench.kernels.shapes import Case

FRESH = 128
"""Different routings that a run goes through in turn: fewer where that would take more than ``MOST_ASSIGNMENTS``."""
MOST_ASSIGNMENTS = 1 << 22


@dataclass
class Problem:
    """``x`` and ``dy`` (the gradient of the output) are ``[T, D]``; ``w_in [N, 2H, D]``, ``w_out [N, D, H]``."""

    case: Case
    x_TD: Tensor
    dy_TD: Tensor
    w_in: Tensor
    w_out: Tensor
    routings: list[Routing]

    @classmethod
    def make(cls, case: Case, *, fresh: bool = True, seed: int = 0) -> Problem:
        """Standard normal rows, weights with the variance of one over their inputs; one routing unless ``fresh``."""
        s, dtype, device = case.shape, case.torch_dtype, case.device
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size: int, std: float = 1.0) -> Tensor:
            return (torch.randn(size, generator=generator, device=device) * std).to(dtype)

        return cls(
            case,
            normal(s.tokens, s.dim),
            normal(s.tokens, s.dim),
            normal(s.num_experts, 2 * s.hidden, s.dim, std=s.dim**-0.5),
            normal(s.num_experts, s.dim, s.hidden, std=s.hidden**-0.5),
            make_routings(
                case.routing,
                s.tokens,
                s.num_experts,
                s.top_k,
                max(16, min(FRESH, MOST_ASSIGNMENTS // s.rows)) if fresh else 1,
                dtype=dtype,
                device=device,
                seed=seed + 1,
            ),
        )

    def first(self, tokens: int) -> Problem:
        """The same with the first ``tokens`` tokens and the first routing only."""
        if tokens == self.case.shape.tokens:
            return self
        routing = Routing(*(t[:tokens] for t in self.routings[0]))
        case = replace(self.case, shape=replace(self.case.shape, tokens=tokens))
        return Problem(case, self.x_TD[:tokens], self.dy_TD[:tokens], self.w_in, self.w_out, [routing])

    def touched(self) -> float:
        """Experts that get rows, on average over the routings."""
        return sum(r.expert_TK.unique().numel() for r in self.routings) / len(self.routings)
