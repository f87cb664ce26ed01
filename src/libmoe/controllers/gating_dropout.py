"""Gating dropout: for some steps all tokens stay with the experts of their own device."""

from __future__ import annotations

import torch
from torch import nn

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.core.seeding import derive_seed
from libmoe.routers.local_experts import LocalGate


class GatingDropout(Controller):
    """With probability p a whole step, all layers and all processes alike, is local (Liu et al., arXiv 2205.14336).

    A local step needs no exchange of tokens between devices, and regularises.  The draw is a function of seed and step:
    there is no state, and a resumed run draws the same.

    Metrics: ``gating_dropout/local``, 1 for such a step.

    Args:
        rate: p.
        seed: of the draws.
    """

    def __init__(self, rate: float = 0.3, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise ConfigError(f"gating_dropout={rate} is a probability, from 0 to 1; 0 is off")
        self.rate, self.seed = rate, seed

    def draw(self, step: int) -> bool:
        """Whether ``step`` is local."""
        seed = derive_seed(self.seed, "gating dropout", step)
        return float(torch.rand(1, generator=torch.Generator().manual_seed(seed))) < self.rate

    def before_step(self, info: StepInfo) -> None:
        local = self.draw(info.step)
        for gate in local_gates(info.model):
            gate.local = local

    def after_step(self, info: StepInfo) -> None:
        gates = local_gates(info.model)
        info.metrics["gating_dropout/local"] = float(bool(gates) and all(gate.local for gate in gates))

    def finish(self, info: StepInfo) -> None:
        for gate in local_gates(info.model):
            gate.local = False


def local_gates(model: nn.Module) -> list[LocalGate]:
    return [module for module in model.modules() if isinstance(module, LocalGate)]
