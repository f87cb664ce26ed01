"""Sparsity control: the L1 coefficient that keeps tokens at k experts on average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError, TrainingError
from libmoe.layers.moe import MoELayer, moe_layers
from libmoe.losses.l1 import L1Loss

# Float32's range: at 0 the coefficient could never grow again, and beyond the top it turns gradients into NaN.
SMALLEST, LARGEST = 1e-37, 1e37


class L1Controller(Controller):
    """``lambda <- lambda * factor ^ sign(S* - S)`` after every optimiser step (ReMoE, arXiv 2412.14711 §3.3).

    S is the share of (token, expert) pairs that were *not* active in the step, over all layers with an
    :class:`~libmoe.losses.l1.L1Loss`, all micro-batches and all ranks; S* is the target.  Layers may differ from
    each other: only their mean is controlled.

    The controller owns lambda and writes it into the losses before each step, so all layers agree, copies of a
    model included, and a restart resumes where training stopped.  From 1e-8 at factor 1.2 it takes about 75
    steps to grow a millionfold: start shorter runs (hundreds of steps) at 1e-5 to 1e-4.

    Metrics: ``l1/coefficient``, the next lambda, and ``l1/sparsity``, S.

    Args:
        target_sparsity: S* = 1 - k / N.
        start: first lambda.
        factor: alpha, greater than 1.

    Raises:
        ConfigError: an argument is out of range.
        TrainingError: after a step without loads of any layer that has an L1 loss.
    """

    def __init__(self, target_sparsity: float, start: float = 1e-8, factor: float = 1.2) -> None:
        if not 0 <= target_sparsity < 1:
            raise ConfigError(f"target_sparsity must be at least 0 and below 1, got {target_sparsity}")
        if start <= 0:
            raise ConfigError(f"l1_start must be greater than 0, got {start}; the paper uses 1e-8")
        if factor <= 1:
            raise ConfigError(f"l1_factor must be greater than 1, got {factor}; the paper uses 1.2")
        self.target_sparsity, self.coefficient, self.factor = target_sparsity, start, factor

    def start(self, info: StepInfo) -> None:
        self._write(info.model)

    def before_step(self, info: StepInfo) -> None:
        self._write(info.model)

    def after_step(self, info: StepInfo) -> None:
        sparsity = self.sparsity(info)
        if sparsity < self.target_sparsity:
            self.coefficient *= self.factor
        elif sparsity > self.target_sparsity:
            self.coefficient /= self.factor
        self.coefficient = min(max(self.coefficient, SMALLEST), LARGEST)
        info.metrics |= {"l1/coefficient": self.coefficient, "l1/sparsity": sparsity}
        self._write(info.model)

    def sparsity(self, info: StepInfo) -> float:
        """Share of inactive (token, expert) pairs in the step just finished."""
        active = pairs = 0.0
        for layer, _ in _losses(info.model):
            if layer.index in info.loads:
                load = info.loads[layer.index]
                active += float(load.count_N.sum())
                pairs += float(load.tokens) * layer.router.num_experts
        if not pairs:
            raise TrainingError("no loads of layers with an L1 loss; gather the step's statistics")
        return 1.0 - active / pairs

    def _write(self, model: nn.Module) -> None:
        for _, loss in _losses(model):
            loss.coefficient = self.coefficient

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])


def _losses(model: nn.Module) -> Iterator[tuple[MoELayer, L1Loss]]:
    for _, layer in moe_layers(model):
        for loss in layer.losses:
            if isinstance(loss, L1Loss):
                yield layer, loss
