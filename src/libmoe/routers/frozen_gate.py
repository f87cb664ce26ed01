"""A linear gate that no training moves: a classifier, trained elsewhere, decides."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from libmoe.core.errors import ConfigError

NAMES = (("weight", "bias"), ("fc1.weight", "fc1.bias"))
"""How a file may call the two tensors."""


class FrozenGate(nn.Module):
    """``logits = W x + b`` in float32 with W ``[N, D]`` and b ``[N]`` as buffers: saved with the model, never trained.

    Args:
        dim, num_experts: D and N.
        file: safetensors that hold W and b as ``weight`` and ``bias``, or as ``fc1.weight`` and ``fc1.bias``;
            ``None`` draws W and leaves b 0.  A saved model brings both, so that the file may be gone when it is
            loaded again; whoever uses the gate before it has weights is told.

    Raises:
        ConfigError: the file is no such file, or its tensors are of other shapes.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, num_experts: int, file: str | None = None) -> None:
        super().__init__()
        self._missing: str | None = None
        self.register_buffer("weight", torch.randn(num_experts, dim) * 0.02)
        self.register_buffer("bias", torch.zeros(num_experts))
        if file is None:
            return
        if Path(file).expanduser().is_file():
            self.set(*_read(file))
        else:
            self._missing = file
            self.weight.fill_(torch.nan)

    def set(self, weight_ND: Tensor, bias_N: Tensor) -> None:
        """Take the weights of a classifier.

        Raises:
            ConfigError: they are of other shapes than the gate's.
        """
        for name, own, new in (("weight", self.weight, weight_ND), ("bias", self.bias, bias_N)):
            if own.shape != new.shape:
                raise ConfigError(
                    f"router_weights: {name} has shape {tuple(new.shape)}; this layer needs {tuple(own.shape)}"
                )
            own.copy_(new)
        self._missing = None

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN`` in at least float32, under autocast too."""
        if self._missing is not None:
            if bool(self.weight.isnan().any()):
                raise ConfigError(f"router_weights={self._missing!r} does not exist; give a safetensors file")
            self._missing = None
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def _read(file: str) -> tuple[Tensor, Tensor]:
    try:
        tensors = load_file(Path(file).expanduser(), device="cpu")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"router_weights={file!r} is no safetensors file: {' '.join(str(error).split())}") from None
    for weight, bias in NAMES:
        if weight in tensors and bias in tensors:
            return tensors[weight], tensors[bias]
    raise ConfigError(f"router_weights={file!r} holds {', '.join(sorted(tensors))}; it needs weight and bias")
