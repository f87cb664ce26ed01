"""Teaching a router which expert it should have chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class RouterTargetLoss(Loss):
    """Mean over real tokens of ``-sum_e t_e ln softmax(logits)_e`` with t from ``extras["target_TN"]``.

    The super-class loss of Mobile V-MoE (Daxberger et al., arXiv 2309.04354 §3), where all tokens of an image have one
    target and equal logits: the mean over images.  Scope does not matter.
    """

    name = "router_target"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        target_TN = routing.extras.get("target_TN")
        if target_TN is None:
            raise ConfigError(f"{self.name} loss needs a router that is told its targets; this one is not")
        nll_T1 = -(target_TN * self.logits(routing).log_softmax(dim=-1)).sum(dim=-1, keepdim=True)
        real_T1, tokens = real_tokens(nll_T1, ctx)
        return real_T1.sum(), tokens
