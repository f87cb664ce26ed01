"""Experts that come and go: unused ones are switched off, one is switched on for tokens that nobody takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.layers.moe import moe_layers
from libmoe.routers.top_any import TopAnyRouter


class AdaptiveExperts(Controller):
    """Watches a part of each period and then lets every top-any router adapt (DynMoE, arXiv 2405.14297 §3.3, alg. 1).

    Over the steps watched it adds up how many tokens each expert took and the inputs that none took, over all
    micro-batches and ranks; :meth:`~libmoe.routers.top_any.TopAnyRouter.adapt` does the rest.

    Metrics: ``adaptive_experts/active``, the mean number of active experts of a layer, and, after an adaptation,
    ``adaptive_experts/removed`` and ``adaptive_experts/added`` over all layers.

    Args:
        period: steps from one adaptation to the next.
        watch: the part of a period that is watched, from and to; adaptation comes at its end.

    Raises:
        ConfigError: no step would be watched.
    """

    def __init__(self, period: int = 900, watch: tuple[float, float] = (1 / 3, 2 / 3)) -> None:
        self.period = period
        self.start_at, self.stop_at = (round(part * period) for part in watch)
        if period < 1 or not 0 <= self.start_at < self.stop_at <= period:
            raise ConfigError(f"watching {watch} of a period of {period} steps leaves none; lengthen adapt_every")
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def after_step(self, info: StepInfo) -> None:
        place = (info.step - 1) % self.period
        routers = {
            layer.index: layer.router
            for _, layer in moe_layers(info.model)
            if isinstance(layer.router, TopAnyRouter)
        }
        if self.start_at <= place < self.stop_at:
            self._watch(info)
        if place + 1 == self.stop_at:
            changes = [routers[index].adapt(*seen) for index, seen in self.seen.items() if index in routers]
            self.seen = {}
            info.metrics["adaptive_experts/removed"] = sum(removed for removed, _ in changes)
            info.metrics["adaptive_experts/added"] = sum(added for _, added in changes)
        if routers:
            active = [float(router.active_N.sum()) for router in routers.values()]
            info.metrics["adaptive_experts/active"] = sum(active) / len(active)

    def _watch(self, info: StepInfo) -> None:
        for index, unrouted_D in info.statistics.reduced_sums("unrouted").items():
            routed_N = info.loads[index].count_N.double().cpu()
            now = (routed_N, unrouted_D.double().cpu())
            before = self.seen.get(index)
            self.seen[index] = now if before is None else (before[0] + now[0], before[1] + now[1])

    def state_dict(self) -> dict[str, Any]:
        return {str(index): [part.tolist() for part in parts] for index, parts in self.seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {
            int(index): (
                torch.tensor(routed, dtype=torch.float64),
                torch.tensor(unrouted, dtype=torch.float64),
            )
            for index, (routed, unrouted) in state.items()
        }
