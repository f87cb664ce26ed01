"""Experts per token by layer: schedules of them, for routers that choose by k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


def skip_schedule(layers: int, begin: int, high: int, end: int, at: int, *, most: int) -> tuple[int, ...]:
    """Experts per token of each layer: from ``begin`` linearly to ``high`` in layer ``at``, on to ``end`` in the last.

    The schedules (b, h, e, p) of arXiv 2505.03531; p counts layers from 1.  Flat, ascending, descending, peak and
    valley are among them.  Between whole numbers the nearest is taken, of two the even one.

    Args:
        most: K of the router; the result lies in 1..K.

    Raises:
        ConfigError: ``at`` is no layer.
    """
    if not 1 <= at <= layers:
        raise ConfigError(f"at={at} must be one of the layers 1 to {layers}")
    found = []
    for layer in range(1, layers + 1):
        start, stop, first, last = (begin, high, 1, at) if layer <= at else (high, end, at, layers)
        share = 1.0 if first == last else (layer - first) / (last - first)
        found.append(min(max(round(start + (stop - start) * share), 1), most))
    return tuple(found)


class SkipSchedule(Intervention):
    """At most ``ks[l]`` experts per token in layer l, as its router chooses and weighs them (arXiv 2505.03531).

    A router that does not renormalise then gives less weight in all, one that does as much as before.

    Raises:
        ConfigError: a number below 1; in use, a layer without a number, or a router that does not choose by k.
    """

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = by_layer(ks)

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return min(k, of_layer(self.ks, ctx))

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan, k = self.sparse(routing, ctx), of_layer(self.ks, ctx)
        if len(plan.token_A) > k * plan.num_tokens:
            raise ConfigError(f"SkipSchedule cannot edit layer {ctx.index}: its router does not choose the best k")
        return routing


def by_layer(ks: Sequence[int]) -> tuple[int, ...]:
    """Experts per token of each layer.  Raises ConfigError for none, or one below 1."""
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={list(ks)}: each layer needs at least 1 expert per token")
    return tuple(ks)


def of_layer(ks: Sequence[int], ctx: LayerContext) -> int:
    if ctx.index >= len(ks):
        raise ConfigError(f"ks has {len(ks)} numbers and the model a layer {ctx.index}; give one for each MoE layer")
    return ks[ctx.index]
