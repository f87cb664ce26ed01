"""Gates one layer early: what a token is when it reaches a layer decides its experts in a later one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.routers.gates import LinearGate
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class PreGatedRouter(TopKRouter):
    """Top-k by logits that an earlier layer made: ``(idx, p)_(b+1) = TopK(softmax(W_b x_b))`` (arXiv 2308.12066 §3).

    Both the experts and their weights are of the earlier layer's input; this layer's input decides for a later one.
    Logits are handed on in ``extras["ahead"]``, a list for the layers to come, the next first, so that they belong to
    the same tokens, in the same order, of the same forward pass, recomputed or not.

    Args:
        dim, num_experts, top_k: D, N, K.
        own: whether this layer decides for itself, as the first ones of a stack must.
        ahead: whether it decides for a later layer, which the last ones of a stack must not.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`; its ``gate`` is this layer's own.

    Raises:
        ConfigError: in a forward pass, no earlier layer decided for this one.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        own: bool = True,
        ahead: bool = False,
        renormalise: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=renormalise, **options)
        self.ahead_gate = LinearGate(dim, num_experts) if ahead else None
        if not own:
            self.gate = None

    def waiting(self, ctx: LayerContext) -> list[Tensor]:
        """Logits ``[T, N]`` that earlier layers made for this one and those after it, in order."""
        return [] if ctx.previous is None else ctx.previous.extras.get("ahead", [])

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        if self.gate is not None:
            return self.gate(x_TD)
        waiting = self.waiting(ctx)
        if not waiting or waiting[0].shape != (len(x_TD), self.num_experts):
            raise ConfigError(
                f"MoE layer {ctx.index} is pre-gated, and no earlier layer decided for its tokens; name it among starts"
            )
        return waiting[0]

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = super().route(x_TD, ctx)
        ahead = self.waiting(ctx)[0 if self.gate is not None else 1 :]
        if self.ahead_gate is not None:
            ahead = [*ahead, self.ahead_gate(x_TD)]
        return replace(routing, extras={**routing.extras, "ahead": ahead})
