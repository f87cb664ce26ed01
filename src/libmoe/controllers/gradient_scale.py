"""Gradients of experts, scaled as by frameworks that spread experts over processes."""

from __future__ import annotations

import math

import torch

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.layers.moe import moe_layers
from libmoe.losses.base import world_size


class ExpertGradientScale(Controller):
    """Multiplies the gradients of experts by ``sqrt(G)`` before they are clipped (arXiv 2112.10684, as released).

    Where experts are spread over G groups of processes, an expert's gradient is the *sum* over the tokens of all
    groups, each of which divides its loss by its own tokens.  Dividing it by G, as other gradients are, gives the
    gradient of the mean loss, which this library always has; the released training divides by ``sqrt(G)``.

    Metric: ``gradient_scale/factor``.

    Args:
        groups: G; ``None`` takes the number of processes, by which a single one changes nothing.
    """

    def __init__(self, groups: int | None = None) -> None:
        if groups is not None and groups < 1:
            raise ConfigError(f"expert_groups={groups} must be at least 1")
        self.groups = groups

    @torch.no_grad()
    def after_backward(self, info: StepInfo) -> None:
        factor = math.sqrt(world_size() if self.groups is None else self.groups)
        for _, layer in moe_layers(info.model):
            for parameter in layer.experts.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        info.metrics["gradient_scale/factor"] = factor
