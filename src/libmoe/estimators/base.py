"""The contract of gradient estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Router, Routing


class Estimator:
    """Base: rewrite the plan's weights so that values or gradients change; the selection stays.

    The default of a layer is no estimator: gradients flow through the chosen weights alone.
    """

    def apply(self, routing: Routing, ctx: LayerContext) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} defines no apply()")

    def training_load(self, router: Router) -> list[float]:
        """Rows per token that each expert gets while training (for cost accounting)."""
        return router.training_load()
