"""The contract of controllers: few, well-named events and a state that is saved with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from libmoe.core.statistics import StepStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from libmoe.core.statistics import LayerLoad


def step_at(fraction: float, total_steps: int) -> int:
    """The first step, counted from 0, before which ``fraction`` of training is over."""
    return math.ceil(fraction * total_steps - 1e-9)  # 0.1 * 30 is a little more than 3


@dataclass
class StepInfo:
    """What controllers see of the training loop.

    Attributes:
        model: the model being trained (unwrapped).
        optimizer: for surgery when parameters come and go.
        step: optimiser steps finished; ``total_steps`` planned.
        loads: assignments per expert of the step just finished, over all micro-batches and ranks, by layer
            index (empty before the first step).
        statistics: all that was gathered in that step by this rank; its ``reduced_sums`` and ``mean_losses`` speak of
            all ranks and are called by every one.
        metrics: numbers a controller wants logged, filled by controllers.
        token_shares: counts the training data when called: the share of each token id, float64 ``[ids]``.  ``None``
            for a loop that cannot.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    step: int = 0
    total_steps: int = 0
    loads: dict[int, LayerLoad] = field(default_factory=dict)
    statistics: StepStatistics = field(default_factory=StepStatistics)
    metrics: dict[str, float] = field(default_factory=dict)
    token_shares: Callable[[], Tensor] | None = None


class Controller:
    """Base of controllers.

    One instance serves the whole model.  ``start`` is called once before training, ``before_step`` before the
    forward passes of each optimiser step, ``after_backward`` when its gradients are complete (reduced over processes,
    not yet clipped), ``after_step`` after the optimiser has stepped, ``finish`` at the end.  Everything that must
    survive a restart goes through ``state_dict``.
    """

    def start(self, info: StepInfo) -> None: ...

    def before_step(self, info: StepInfo) -> None: ...

    def after_backward(self, info: StepInfo) -> None: ...

    def after_step(self, info: StepInfo) -> None: ...

    def finish(self, info: StepInfo) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state (numbers, strings, lists, dictionaries)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
