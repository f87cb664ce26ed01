"""The MoE layer: route, execute, add what is shared.  It names no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.context import LayerContext, current_or_new
from libmoe.core.errors import ConfigError
from libmoe.core.graphs import between_graphs
from libmoe.core.routing import Router, Routing
from libmoe.estimators.base import Estimator
from libmoe.experts.base import Experts
from libmoe.losses.base import LayerCall, Loss


class MoELayer(nn.Module):
    """``y = experts(x, router(x)) + shared(x)`` for hidden states ``[..., D]``; experts of a connector change D.

    ``route`` and ``execute`` may be called apart: to route on another activation, to use a plan made
    elsewhere, or to fetch experts between the two.

    Args:
        router, experts: with the same number of experts.
        shared: module ``[T, D] -> [T, D]`` that every token passes, or ``None``.
        mix: module ``(x_TD, experts' y_TD, shared y_TD, routing) -> y_TD`` that joins the two; ``None`` adds them.
        losses: auxiliary losses; those with coefficient > 0 are attached to the output while training.
        estimator: gradient estimator, or ``None`` for plain gradients.
        index: place among the model's MoE layers, from 0.

    Attributes:
        parts: how many consecutive hidden states are parts of one token of the model (1: each is a token).
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        shared: nn.Module | None = None,
        mix: nn.Module | None = None,
        losses: Sequence[Loss] = (),
        estimator: Estimator | None = None,
        index: int = 0,
    ) -> None:
        super().__init__()
        _stay_between_graphs()
        if router.num_experts != experts.num_experts:
            raise ConfigError(
                f"the router chooses among {router.num_experts} experts but there are {experts.num_experts}"
            )
        if mix is not None and shared is None:
            raise ConfigError(f"{type(mix).__name__} mixes experts with a shared part, and there is none")
        self.router, self.experts, self.shared, self.mix = router, experts, shared, mix
        self.losses, self.estimator, self.index = list(losses), estimator, index
        self.parts = 1

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        """Decide for ``x_TD``; afterwards later layers and recorders see the routing."""
        routing = ctx.edit_routing(self.router(x_TD, ctx))
        if self.estimator is not None:
            routing = self.estimator.apply(routing, ctx)
        if not ctx.forward.recomputing:
            ctx.forward.routings[self.index] = routing
            self._observe(routing, ctx)
        return routing

    def execute(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """``y_TD``: the routed experts and the shared part."""
        return self.with_shared(x_TD, self.experts.execute(x_TD, routing.plan), routing)

    def with_shared(self, x_TD: Tensor, y_TD: Tensor, routing: Routing | None = None) -> Tensor:
        """The experts' output and the shared part's, which every token passes, dropped ones too.

        ``routing`` is ``None`` where only the shared part is looked at.
        """
        if self.shared is None:
            return y_TD
        shared_TD = self.shared(x_TD)
        return y_TD + shared_TD if self.mix is None else self.mix(x_TD, y_TD, shared_TD, routing)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.run(hidden_states, self.execute)

    def run_given(self, hidden_states: Tensor, *given: Any) -> None:
        """Run what ``forward`` is given besides hidden states and is no part of the layer; here nothing is."""

    def run(self, hidden_states: Tensor, execute: Callable[[Tensor, Routing], Tensor]) -> Tensor:
        """Route ``[..., D]``, let ``execute(x_TD, routing)`` compute ``y_TD``, and attach the losses to it."""
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        ctx = current_or_new().layer(self.index, tuple(hidden_states.shape[:-1]), self.training, self.parts)
        routing = self.route(x_TD, ctx)
        y_TD = execute(x_TD, routing)
        if self.training and torch.is_grad_enabled():
            call = LayerCall(x_TD, self.router, self.experts)
            for loss in self.losses:
                if loss.coefficient > 0:
                    y_TD = loss.attach_to(y_TD, routing, ctx, call)
        return y_TD.reshape(*hidden_states.shape[:-1], y_TD.shape[-1])

    def _observe(self, routing: Routing, ctx: LayerContext) -> None:
        opts = ctx.forward.options
        if opts.statistics is not None:
            mask_T = ctx.mask_T
            count_N = routing.plan.load_N(mask_T)
            tokens = (
                count_N.new_tensor(float(routing.plan.num_tokens)) if mask_T is None else mask_T.sum().float()
            )
            opts.statistics.add(self.index, count_N, tokens)
        for record in opts.recorders:
            record(ctx, routing)


@cache
def _stay_between_graphs() -> None:
    """Have ``torch.compile`` run MoE layers as they are, between two compiled graphs.

    The rows of each expert depend on the data: traced, a layer falls into some twenty graphs that are compiled anew as
    loads change.  Done with the first layer and not where the class is, for the compiler takes a second to import.
    """
    reason = "MoE layers run between compiled graphs: how many tokens an expert gets depends on the data"
    MoELayer.run = between_graphs(MoELayer.run, reason)  # type: ignore[method-assign]


def moe_layers(model: nn.Module) -> Iterable[tuple[str, MoELayer]]:
    """``(path, layer)`` of every MoE layer in ``model``, in order of their index."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, MoELayer)]
    return sorted(found, key=lambda item: item[1].index)
