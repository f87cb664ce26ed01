"""Balance of what a router chose, before something else sent tokens further."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.balance import BalanceLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing
    from libmoe.losses.base import Scope


class ChosenBalanceLoss(BalanceLoss):
    """:class:`~libmoe.losses.balance.BalanceLoss` of the plan in ``extras["chosen"]``, where there is one.

    Args:
        scope: ``sequence`` or ``micro_batch``; what is counted over a whole optimiser step is what was computed.
    """

    name = "chosen_balance"

    def __init__(self, coefficient: float, scope: Scope = "sequence", weights: Sequence[float] | None = None) -> None:
        super().__init__(coefficient, scope, weights)
        if self.needs_step_counts:
            raise ConfigError(f"{self.name}: scope {scope!r} counts what was computed; use 'sequence' or 'micro_batch'")

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        return super().compute(replace(routing, plan=routing.extras.get("chosen", routing.plan)), ctx)
