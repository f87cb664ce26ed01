"""Composition of expert kinds by index range: zero experts after FFNs, wide beside narrow, and so on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.experts.base import Experts

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


class UnionExperts(Experts):
    """Experts ``0 .. n1-1`` are those of the first part, ``n1 .. n1+n2-1`` those of the second, ..."""

    def __init__(self, parts: Iterable[Experts]) -> None:
        kinds = list(parts)
        super().__init__(sum(p.num_experts for p in kinds))
        self.parts = nn.ModuleList(kinds)
        if kinds and hasattr(kinds[0], "out_dim"):
            self.out_dim = kinds[0].out_dim

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        outputs, first = [], 0
        for part in self.parts:
            inner, start, stop = segments.slice(first, first + part.num_experts)
            outputs.append(part.forward_rows(x_RD[start:stop], inner))
            first += part.num_experts
        return torch.cat(outputs)

    def _shares(self, load_N: Sequence[float]) -> Iterator[tuple[Experts, Sequence[float]]]:
        first = 0
        for part in self.parts:
            yield part, load_N[first : first + part.num_experts]
            first += part.num_experts

    def flops_per_token(self, load_N: Sequence[float]) -> float:
        return sum(part.flops_per_token(loads) for part, loads in self._shares(load_N))

    def idle_params(self, load_N: Sequence[float]) -> float:
        return sum(part.idle_params(loads) for part, loads in self._shares(load_N))

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        for part in self.parts:
            yield from part.parameters_of(expert)  # nothing where it is another part's
            expert -= part.num_experts

    def _locate(self, expert: int) -> tuple[Experts, int]:
        for part in self.parts:
            if expert < part.num_experts:
                return part, expert
            expert -= part.num_experts
        raise IndexError(expert)

    def materialise(self, expert: int) -> nn.Module:
        part, inner = self._locate(expert)
        return part.materialise(inner)

    def flops_per_row(self) -> list[float]:
        return [n for part in self.parts for n in part.flops_per_row()]
