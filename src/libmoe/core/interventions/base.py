"""The contract of interventions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan

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
        steps = ("top_k", "edit_logits", "edit_scores")
        return any(getattr(type(self), step) is not getattr(Intervention, step) for step in steps)

    @property
    def edits_logits(self) -> bool:
        """Whether it changes the output of the gate; a router that does not let it raises ConfigError."""
        return type(self).edit_logits is not Intervention.edit_logits

    def applies(self, ctx: LayerContext) -> bool:
        return self.layers is None or ctx.index in self.layers

    def top_k(self, k: int, ctx: LayerContext) -> int:
        return k

    def edit_logits(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        """What the router sees as the output of its gate: selection, weights and losses follow, and gradients pass."""
        return logits_TN

    def edit_scores(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        """What selection alone looks at."""
        return scores_TN

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        return routing

    def sparse(self, routing: Routing, ctx: LayerContext) -> SparsePlan:
        """Raises ConfigError for a plan of another kind."""
        if not isinstance(routing.plan, SparsePlan):
            raise ConfigError(
                f"{type(self).__name__} cannot edit layer {ctx.index}: its router makes plans of kind "
                f"{routing.plan.kind!r}"
            )
        return routing.plan


def experts_by_layer(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """From pairs of layer and expert to the experts of each layer, in order and each once.

    Raises:
        ConfigError: there are none.
    """
    found: dict[int, list[int]] = {}
    for layer, expert in sorted({(int(layer), int(expert)) for layer, expert in pairs}):
        found.setdefault(layer, []).append(expert)
    if not found:
        raise ConfigError("experts: name at least one pair (layer, expert)")
    return found


def check_experts(what: str, experts: Iterable[int], num_experts: int, ctx: LayerContext) -> None:
    """Raises ConfigError unless the layer has all of ``experts``."""
    for expert in experts:
        if not 0 <= expert < num_experts:
            raise ConfigError(f"cannot {what} expert {expert}: layer {ctx.index} has experts 0..{num_experts - 1}")
