"""Balancing without a loss: after each step, push selection biases towards equal load."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router


def biased_routers(model: nn.Module) -> dict[int, Router]:
    """Routers with a ``selection_bias``, by the index of the layer that owns them."""
    return {
        layer.index: layer.router
        for layer in model.modules()
        if isinstance(getattr(layer, "router", None), Router)
        and getattr(layer.router, "selection_bias", None) is not None
    }


class BiasUpdate(Controller):
    """``b_i += rate * sign(mean load - load_i)`` (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437 §2.1.2).

    Loads are those of the whole optimiser step, over all micro-batches and ranks, so every rank makes the
    same update.  The biases are buffers of the routers and are saved there; this controller has no state.

    Metrics: ``bias_update/routers``, the number of routers updated, and ``bias_update/max_bias``, the largest
    ``|b_i|``.

    Args:
        rate: update speed, gamma in the paper.
    """

    def __init__(self, rate: float = 0.001) -> None:
        if rate <= 0:
            raise ConfigError(f"bias update rate must be greater than 0, got {rate}")
        self.rate = rate

    def change(self, load_N: Tensor) -> Tensor:
        """What is added to the biases of a layer with these loads: ``[N]``."""
        return self.rate * torch.sign(load_N.mean() - load_N)

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> None:
        biases = []
        for index, router in biased_routers(info.model).items():
            if index in info.loads:
                bias_N = router.selection_bias
                load_N = info.loads[index].count_N.to(bias_N.device)
                bias_N += self.change(load_N)
                biases.append(bias_N)
        info.metrics["bias_update/routers"] = len(biases)
        if biases:
            info.metrics["bias_update/max_bias"] = max(b.abs().max().item() for b in biases)
