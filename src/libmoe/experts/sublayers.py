"""Deep experts: several feed-forward sublayers in a row, each with a residual of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFN, FFNExperts

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class SublayerExperts(Experts):
    """What n pre-norm sublayers add to a token: ``E(x) = x_n - x_0`` with ``x_i = x_{i-1} + FFN_i(norm(x_{i-1}))``.

    The experts of BASE layers (arXiv 2103.16716), StableMoE (arXiv 2204.08396) and MoEC (arXiv 2207.09094), without
    the residual around them: a token whose gate is a gets ``x + a E(x)``, which is ``a S(x) + (1 - a) x`` for the
    stack S as they write it.  The norm has no scale and no shift; the linear after it can learn both.

    Args:
        sublayers: feed-forward experts of the same number and width, first to last.

    Raises:
        ConfigError: none, or sublayers that do not fit each other.
    """

    def __init__(self, sublayers: Iterable[FFNExperts]) -> None:
        parts = list(sublayers)
        if not parts:
            raise ConfigError("sublayers=0: an expert needs at least one")
        super().__init__(parts[0].num_experts)
        shapes = {(part.num_experts, part.dim) for part in parts}
        if len(shapes) > 1 or any(part.out_dim != part.dim for part in parts):
            raise ConfigError("sublayers of an expert must have one number of experts and one width in and out")
        self.sublayers = nn.ModuleList(parts)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        h_RD = x_RD
        for part in self.sublayers:
            h_RD = h_RD + part.forward_rows(_normed(h_RD), segments)
        return h_RD - x_RD

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        h_GLD = x_GLD
        for part in self.sublayers:
            h_GLD = h_GLD + part.forward_merged(_normed(h_GLD), gate_GN)
        return h_GLD - x_GLD

    def materialise(self, expert: int) -> Sublayers:
        return Sublayers(part.materialise(expert) for part in self.sublayers)

    def flops_per_row(self) -> list[float]:
        return [sum(costs) for costs in zip(*(part.flops_per_row() for part in self.sublayers), strict=True)]


class Sublayers(nn.Module):
    """One expert of :class:`SublayerExperts`."""

    def __init__(self, ffns: Iterable[FFN]) -> None:
        super().__init__()
        self.ffns = nn.ModuleList(ffns)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for ffn in self.ffns:
            h = h + ffn(_normed(h))
        return h - x
