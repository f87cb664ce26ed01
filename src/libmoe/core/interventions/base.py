"""The contract of interventions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class Intervention:
    """Base: override what you change; ``layers`` limits it to some MoE layers (``None``: all)."""

    def __init__(self, layers: Iterable[int] | None = None) -> None:
        self.layers = None if layers is None else frozenset(layers)

    @property
    def edits_selection(self) -> bool:
        """Whether it takes part in how a router chooses, and so needs one of LibMoE's; else any decision will do."""
        mine = type(self)
        return mine.top_k is not Intervention.top_k or mine.edit_scores is not Intervention.edit_scores

    def applies(self, ctx: LayerContext) -> bool:
        return self.layers is None or ctx.index in self.layers

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return k

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        return scores_TN

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        return routing
