"""Every expert takes a step of the same length, however few tokens it saw."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.experts.base import Experts
from libmoe.layers.moe import moe_layers


class NormalisedExpertGradient(Controller):
    """Divides the gradient of each expert by its own Frobenius norm (arXiv 2208.02813 §4).

    Plain SGD then moves an expert by exactly the learning rate: one that the router has sent little to learns as fast
    as the others, which is what lets experts specialise before the router does.  Experts without a gradient, which no
    token chose, stay where they are.  It runs before gradients are clipped: with E experts at work their norm is
    ``sqrt(E)`` at least, so leave clipping out (``train.clip: null``).

    Metric: ``normalised_gradient/smallest`` and ``/largest`` norm that was divided by.
    """

    @torch.no_grad()
    def after_backward(self, info: StepInfo) -> None:
        norms = []
        for path, layer in moe_layers(info.model):
            for gradients in expert_gradients(layer.experts, path):
                norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
                if float(norm) > 0:
                    for gradient in gradients:
                        gradient.div_(norm)
                    norms.append(float(norm))
        if norms:
            info.metrics["normalised_gradient/smallest"] = min(norms)
            info.metrics["normalised_gradient/largest"] = max(norms)


def expert_gradients(experts: Experts, path: str) -> list[list[Tensor]]:
    """The gradients of each expert, as views; experts that have none are left out.

    Raises:
        ConfigError: experts share parameters.
    """
    own = [list(experts.parameters_of(expert)) for expert in range(experts.num_experts)]
    known = {id(parameter) for parameters in own for parameter, _ in parameters}
    for name, parameter in experts.named_parameters():
        if parameter.grad is not None and id(parameter) not in known:
            raise ConfigError(
                f"{path}: the gradient of {type(experts).__name__}.{name} belongs to no expert alone, so it cannot be "
                "normalised expert by expert; use normalise=false, or FFNExperts"
            )
    found = [
        [parameter.grad if row is None else parameter.grad[row] for parameter, row in parameters
         if parameter.grad is not None]
        for parameters in own
    ]  # fmt: skip
    return [gradients for gradients in found if gradients]
