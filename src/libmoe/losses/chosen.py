"""Balance of what a router chose, before something else sent tokens further."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import LOCAL_SCOPES

if TYPE_CHECKING:

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class ChosenBalanceLoss(BalanceLoss):
    """:class:`~libmoe.losses.balance.BalanceLoss` of the plan in ``extras["chosen"]``, where there is one.

    Args:
        scope: ``sequence`` or ``micro_batch``; what is counted over a whole optimiser step is what was computed.
    """

    name = "chosen_balance"
    scopes = LOCAL_SCOPES

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        return super().compute(replace(routing, plan=routing.extras.get("chosen", routing.plan)), ctx)
