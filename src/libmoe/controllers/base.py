"""The contract of controllers: few, well-named events and a state that is saved with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from libmoe.core.statistics import LayerLoad


@dataclass
class StepInfo:
    """What controllers see of the training loop.

    Attributes:
        model: the model being trained (unwrapped).
        optimizer: for surgery when parameters come and go.
        step: optimiser steps finished; ``total_steps`` planned.
        loads: assignments per expert of the step just finished, over all micro-batches and ranks, by layer
            index (empty before the first step).
        metrics: numbers a controller wants logged, filled by controllers.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    step: int = 0
    total_steps: int = 0
    loads: dict[int, LayerLoad] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Controller:
    """Base of controllers.

    One instance serves the whole model.  ``start`` is called once before training, ``before_step`` before the
    forward passes of each optimiser step, ``after_step`` after the optimiser has stepped, ``finish`` at the
    end.  Everything that must survive a restart goes through ``state_dict``.
    """

    def start(self, info: StepInfo) -> None: ...

    def before_step(self, info: StepInfo) -> None: ...

    def after_step(self, info: StepInfo) -> None: ...

    def finish(self, info: StepInfo) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state (numbers, strings, lists, dictionaries)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
