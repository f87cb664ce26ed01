"""Router z-loss: keeps the gate's logits small (ST-MoE, arXiv 2202.08906 eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ZLoss(Loss):
    """Mean over real tokens of ``logsumexp(logits)^2``; ``(ln N)^2`` at zero logits.  Scope does not matter."""

    name = "z"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        z_T1 = torch.logsumexp(self.logits(routing), dim=-1, keepdim=True).square()
        real_T1, tokens = real_tokens(z_T1, ctx)
        return real_T1.sum(), tokens
