"""Losses of soft selectors: towards one expert each, and towards experts that exist (DSelect-k)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


def _selectors(routing: Routing, name: str) -> Tensor:
    if "selectors_TJN" not in routing.extras:
        raise ConfigError(f"{name} loss needs selectors; use it with the router of 'dselect-k'")
    return routing.extras["selectors_TJN"]


class SelectorEntropyLoss(Loss):
    """Mean over real tokens of ``sum_j h(r_j)``, ``h(r) = -sum_i r_i ln(r_i + 1e-6)`` (arXiv 2106.03760 eq. 9).

    0 where each selector has chosen.  The published code adds up the tokens of a batch instead: its coefficient times
    the size of the batch is this one.  Scope does not matter.

    Args:
        warmup: fraction of training over which the coefficient grows from 0, where the loop says how far training is;
            a selector that is pressed too early chooses at random and is then without gradient.
    """

    name = "selector_entropy"

    def __init__(self, coefficient: float, *, warmup: float = 0.0) -> None:
        super().__init__(coefficient)
        if not 0 <= warmup <= 1:
            raise ConfigError(f"{self.name}: warmup={warmup} is a fraction of training, 0 to 1")
        self.warmup = warmup

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        r_TJN = _selectors(routing, self.name)
        entropy_TJ = -(r_TJN * (r_TJN + 1e-6).log()).sum(dim=-1)
        real_TJ, tokens = real_tokens(entropy_TJ, ctx)
        return real_TJ.sum(), tokens

    def coefficient_now(self, ctx: LayerContext) -> float:
        grows = ctx.forward.options.total_steps and ctx.progress < self.warmup
        return self.coefficient * (ctx.progress / self.warmup if grows else 1.0)


class ReachableMassLoss(Loss):
    """Mean over real tokens of ``sum_j 1 / sum_i r_ji`` (arXiv 2106.03760, for N that is no power of 2).

    k, its least value, where no selector gives probability to numbers that no expert has.  Scope does not matter.
    """

    name = "reachable_mass"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        mass_TJ = _selectors(routing, self.name).sum(dim=-1)
        real_TJ, tokens = real_tokens(mass_TJ.clamp_min(torch.finfo(mass_TJ.dtype).eps).reciprocal(), ctx)
        return real_TJ.sum(), tokens
