"""Selection biases that move in proportion to how far each load is off, on the scale of the layer's errors."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.controllers.bias_update import BiasUpdate


class RMSBiasUpdate(BiasUpdate):
    """``b -= rate * (F - Q) / sqrt(mean (F - Q)^2)``, F the shares of the load and ``Q_i = 1/N`` (arXiv 2508.07785).

    As :class:`~libmoe.controllers.bias_update.BiasUpdate`, whose steps are as large for an expert that is a little off
    as for one that is far off.  Equal loads move nothing.
    """

    def change(self, load_N: Tensor) -> Tensor:
        error_N = load_N.mean() - load_N
        rms = error_N.square().mean().sqrt()
        return self.rate * error_N / rms.clamp_min(torch.finfo(rms.dtype).tiny)
