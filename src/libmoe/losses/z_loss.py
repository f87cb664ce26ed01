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
        if mask_T is None:
            return z_T.sum(), z_T.new_tensor(float(len(z_T)))
        return z_T.masked_fill(~mask_T, 0).sum(), mask_T.sum().to(z_T.dtype)
