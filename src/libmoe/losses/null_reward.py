"""A reward for choosing nothing: trades quality for fewer activated experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

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
        real_T1, tokens = real_tokens(null_T.unsqueeze(1), ctx)
        return -real_T1.sum(), tokens
