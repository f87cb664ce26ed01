"""Any modules as experts: different classes and sizes may stand side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.experts.base import Experts

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


class ModuleExperts(Experts):
    """Each expert is a module that maps ``[R, D]`` to ``[R, D]``."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        experts = list(modules)
        super().__init__(len(experts))
        self.experts = nn.ModuleList(experts)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        bounds = pairwise(segments.bounds)
        return torch.cat([expert(x_RD[s:t]) for expert, (s, t) in zip(self.experts, bounds, strict=True)])

    def materialise(self, expert: int) -> nn.Module:
        return copy.deepcopy(self.experts[expert])

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        if 0 <= expert < self.num_experts:
            yield from ((parameter, None) for parameter in self.experts[expert].parameters())

    def flops_per_row(self) -> list[float]:
        return [2.0 * sum(p.numel() for p in e.parameters() if p.dim() > 1) for e in self.experts]
