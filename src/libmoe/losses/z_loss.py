"""Router z-loss: keeps the gate's logits small (ST-MoE, arXiv 2202.08906 eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ZLoss(Loss):
    """Mean over real tokens of ``logsumexp(logits)^2``; ``(ln N)^2`` at zero logits.  Scope does not matter."""

    name = "z"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        if routing.logits_TN is None:
            raise ConfigError("z loss needs logits; this router gives none")
        z_T = torch.logsumexp(routing.logits_TN, dim=-1).square()
        mask_T = ctx.mask_T
        real_T = torch.ones_like(z_T) if mask_T is None else mask_T.to(z_T.dtype)
        return (z_T * real_T).sum(), real_T.sum()
