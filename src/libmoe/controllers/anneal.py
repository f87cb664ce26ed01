"""Coefficients of losses that vanish where the loss has reached its ideal value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.layers.moe import moe_layers

SMALLEST = 1e-30
"""At 0 a loss would be off, no longer measured, and could never come back."""


class AnnealToMinimum(Controller):
    """``coefficient = largest * min(3 (L - L_min) / L_min, 1)`` after each step, 0 at the minimum.

    L is the loss summed over layers and ``L_min`` its least possible value, over all micro-batches and ranks: the rule
    of a successor of SpeechMoE (3M, arXiv 2204.03178 as released).

    Metrics: ``anneal/<loss>``, the next coefficient.

    Args:
        largest: the coefficient at first and far from the minimum, by the loss's name.
        minimum: the least value of such a loss in one layer.
    """

    def __init__(self, largest: Mapping[str, float], minimum: float = 1.0) -> None:
        if minimum <= 0 or any(value < 0 for value in largest.values()):
            raise ConfigError(f"cannot anneal {dict(largest)} to a minimum of {minimum}: both must be positive")
        self.largest, self.minimum = dict(largest), minimum
        self.coefficients = dict(largest)

    def scale(self, name: str, value: float, layers: int) -> float:
        """Coefficient of the loss ``name`` at ``value``, its sum over so many layers."""
        least = layers * self.minimum
        return self.largest[name] * min(max(3 * (value - least) / least, 0.0), 1.0)

    def start(self, info: StepInfo) -> None:
        self._write(info)

    def before_step(self, info: StepInfo) -> None:
        self._write(info)

    def after_step(self, info: StepInfo) -> None:
        means = info.statistics.mean_losses()
        for name in self.coefficients:
            values = [value for (_, other), value in means.items() if other == name]
            if values:
                self.coefficients[name] = self.scale(name, sum(values), len(values))
            info.metrics[f"anneal/{name}"] = self.coefficients[name]
        self._write(info)

    def _write(self, info: StepInfo) -> None:
        for _, layer in moe_layers(info.model):
            for loss in layer.losses:
                if self.largest.get(loss.name):
                    loss.coefficient = max(self.coefficients[loss.name], SMALLEST)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.coefficients)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficients = {name: float(value) for name, value in state.items()}
