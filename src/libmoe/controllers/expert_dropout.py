"""Expert dropout: for some steps a part of the experts is out of reach, then another part."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.core.seeding import derive_seed
from libmoe.layers.moe import moe_layers
from libmoe.routers.expert_dropout import DroppingGate, survivors


class ExpertDropout(Controller):
    """Draw anew every ``interval`` steps which experts are left (MoEC, Xie et al., arXiv 2207.09094 §3.3).

    Experts are cut in order into clusters of equal size, and in every cluster the same places survive, so that a
    token whose expert is gone finds its siblings.  One cluster drops experts anywhere, the baseline.  The draw is a
    function of the seed, the layer and the interval: there is no state, and a resumed run draws the same.

    Metrics: ``expert_dropout/alive``, the share of experts left in the step just finished.

    Args:
        rate: share of each cluster that is dropped, rounded up; 0 drops none.
        clusters: number of clusters m.
        interval: steps that a draw lasts.
        seed: of the draws.
    """

    def __init__(self, rate: float = 0.5, clusters: int = 1, interval: int = 250, seed: int = 0) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"drop_rate={rate} must be at least 0 and below 1")
        if interval < 1:
            raise ConfigError(f"drop_interval={interval} must be at least 1")
        self.rate, self.clusters, self.interval, self.seed = rate, clusters, interval, seed

    def draw(self, num_experts: int, layer: int, step: int) -> Tensor:
        """bool ``[N]``: who is left in ``layer`` at ``step``."""
        left, size = survivors(num_experts, self.clusters, self.rate), num_experts // self.clusters
        seed = derive_seed(self.seed, "expert dropout", layer, step // self.interval)
        places = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:left]
        alive_L = torch.zeros(size, dtype=torch.bool)
        alive_L[places] = True
        return alive_L.repeat(self.clusters)

    def before_step(self, info: StepInfo) -> None:
        for index, gate in _gates(info):
            gate.alive_N.copy_(self.draw(len(gate.alive_N), index, info.step))

    def after_step(self, info: StepInfo) -> None:
        alive = [gate.alive_N for _, gate in _gates(info)]
        if alive:
            info.metrics["expert_dropout/alive"] = float(torch.cat(alive).float().mean())

    def finish(self, info: StepInfo) -> None:
        for _, gate in _gates(info):
            gate.alive_N.fill_(True)


def _gates(info: StepInfo) -> list[tuple[int, DroppingGate]]:
    return [
        (layer.index, module)
        for _, layer in moe_layers(info.model)
        for module in layer.router.modules()
        if isinstance(module, DroppingGate)
    ]
