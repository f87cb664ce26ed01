"""From one expert to many, and from all experts to a few: the phases of EvoMoE."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from libmoe.controllers.base import Controller, StepInfo, step_at
from libmoe.core.errors import ConfigError
from libmoe.core.seeding import derive_seed
from libmoe.experts import Experts
from libmoe.layers.moe import MoELayer, moe_layers
from libmoe.routers.dense_to_sparse import DenseToSparseRouter

Perturbation = Literal["mask", "noise"]
Moments = Literal["copy", "reset"]
Schedule = Literal["exponential", "linear"]


class Evolution(Controller):
    """Spawns experts, lowers the gate's temperature, and makes it top-k (EvoMoE, Nie et al., arXiv 2112.14397 §3).

    1. ``single`` of training: the layers use expert 0 alone.
    2. Its weights, changed at random, become those of all experts (:func:`spawn`), and the gate is soft; its
       temperature falls from ``hot`` to ``cold`` over the ``soft`` part of training.
    3. The gate is top-k until the end.

    All of it is a function of the step and of what the routers remember; there is no state.  A model whose experts
    were spawned by an earlier run begins in phase 2.  What other experts got in phase 1, weight decay, is overwritten.

    Metrics: ``evolution/phase`` (1 to 3) and ``evolution/temperature``.

    Args:
        single, soft: fractions of training that phases 1 and 2 take.
        hot, cold: temperatures; ``schedule`` between them.
        perturbation: ``mask`` sets a share ``amount`` of each expert's weights to 0; ``noise`` adds normal numbers of
            ``amount`` times their standard deviation.
        moments: the optimiser's moments of the new experts: those of expert 0 (masked alike) or zeros.
        seed: of the perturbation.
    """

    def __init__(
        self,
        single: float = 0.25,
        soft: float = 0.5,
        *,
        hot: float = 1.0,
        cold: float = 0.5,
        schedule: Schedule = "exponential",
        perturbation: Perturbation = "mask",
        amount: float = 0.1,
        moments: Moments = "reset",
        seed: int = 0,
    ) -> None:
        if not (0 <= single < 1 and soft >= 0 and single + soft <= 1):
            raise ConfigError(f"single={single} and soft={soft} are fractions of training with a sum of at most 1")
        if not 0 < cold <= hot:
            raise ConfigError(f"temperatures must fall: cold={cold} must be greater than 0 and at most hot={hot}")
        if amount < 0 or (perturbation == "mask" and amount >= 1):
            raise ConfigError(f"diversity={amount} must be at least 0, and below 1 for a mask")
        self.single, self.soft, self.hot, self.cold, self.schedule = single, soft, hot, cold, schedule
        self.perturbation, self.amount, self.moments, self.seed = perturbation, amount, moments, seed

    def temperature(self, step: int, total: int) -> float:
        """Of the gates at ``step``: from ``hot`` where phase 2 begins to ``cold`` where it ends, and after it."""
        begin, end = step_at(self.single, total), step_at(self.single + self.soft, total)
        part = 1.0 if step >= end else max(step - begin, 0) / max(end - begin, 1)
        if self.schedule == "linear":
            return self.hot - part * (self.hot - self.cold)
        return self.hot * (self.cold / self.hot) ** part

    def before_step(self, info: StepInfo) -> None:
        total = info.total_steps
        for layer in evolving_layers(info.model):
            router = layer.router
            assert isinstance(router, DenseToSparseRouter)
            if bool(router.single) and total and info.step >= step_at(self.single, total):
                self._spawn(layer, info.optimizer)
            router.temperature = self.temperature(info.step, total)
            router.hard = bool(total) and info.step >= step_at(self.single + self.soft, total)

    def after_step(self, info: StepInfo) -> None:
        for layer in evolving_layers(info.model)[:1]:
            router = layer.router
            assert isinstance(router, DenseToSparseRouter)
            phase = 1 if bool(router.single) else 3 if router.hard else 2
            info.metrics |= {"evolution/phase": float(phase), "evolution/temperature": router.temperature}

    def _spawn(self, layer: MoELayer, optimizer: torch.optim.Optimizer | None) -> None:
        seed = derive_seed(self.seed, "spawn", layer.index)
        spawn(layer.experts, self.amount, self.perturbation, seed, optimizer, self.moments)
        layer.router.single.fill_(False)


@torch.no_grad()
def spawn(
    experts: Experts,
    amount: float = 0.1,
    perturbation: Perturbation = "mask",
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments = "reset",
) -> None:
    """Give all experts the weights of expert 0, each changed at random in its own way; expert 0 is changed, too.

    Matrices are changed, biases copied.

    Raises:
        ConfigError: the experts are not stacked in tensors of N rows.
    """
    n = experts.num_experts
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in experts.named_parameters():
        if not parameter.dim() or len(parameter) != n:
            raise ConfigError(f"cannot spawn {type(experts).__name__}: {name} has no row for each of {n} experts")
        keep = torch.ones((), dtype=parameter.dtype, device=parameter.device)
        source = parameter[:1].clone()
        new = source.expand_as(parameter)
        if parameter.dim() > 2 and amount:
            if perturbation == "mask":
                keep = (torch.rand(parameter.shape, generator=generator) >= amount).to(source)
                new = new * keep
            else:
                noise = torch.randn(parameter.shape, generator=generator).to(source)
                new = new + amount * source.std() * noise
        parameter.copy_(new)
        for value in _moments(optimizer, parameter):
            value.copy_(value[:1].clone().expand_as(value) * keep) if moments == "copy" else value.zero_()


def _moments(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> list[Tensor]:
    """What the optimiser remembers of each weight of ``parameter``."""
    state: dict[str, Any] = {} if optimizer is None else optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


def evolving_layers(model: nn.Module) -> list[MoELayer]:
    return [layer for _, layer in moe_layers(model) if isinstance(layer.router, DenseToSparseRouter)]
