"""A reward for choosing nothing: trades quality for fewer activated experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class NullReward(Loss):
    """``L = -mean_t P(null | x_t)``, at least -1, with the probability in ``routing.extras["null_T"]``.

    As LIBMoE (arXiv 2411.00918) applies it to TC-MoE (Yan et al., ICLR 2025).  Scope does not matter.
    """

    name = "null_reward"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        null_T = routing.extras.get("null_T")
        if null_T is None:
            raise ConfigError("null reward needs a router with null choices; this one has none")
        mask_T = ctx.mask_T
        if mask_T is None:
            return -null_T.sum(), null_T.new_tensor(float(len(null_T)))
        return -null_T.masked_fill(~mask_T, 0).sum(), mask_T.sum().to(null_T.dtype)
