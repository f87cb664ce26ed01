"""Straight-through weights: hard values forward, the soft weights' gradient backward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.estimators.base import Estimator

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class StraightThrough(Estimator):
    """Every chosen expert gets weight ``value`` forward; backward treats it as the router's weight.

    ``w' = w + stop_gradient(value - w)`` (Bengio et al., arXiv 1308.3432, applied to gates).
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def apply(self, routing: Routing, ctx: LayerContext) -> Routing:
        if not isinstance(routing.plan, SparsePlan):
            raise ConfigError("the straight-through estimator needs a sparse plan")
        weight_A = routing.plan.weight_A
        return replace(routing, plan=replace(routing.plan, weight_A=weight_A + (self.value - weight_A).detach()))
