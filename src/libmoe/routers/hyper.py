"""A gate whose weights come from a frozen network and a small trained embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HyperGate(nn.Module):
    """``logits = W x``, ``W = H(r)``: r ``[D]`` is trained, H never moves (HyperRouter, arXiv 2312.07035).

    H is a two-layer ReLU network from D to ``hidden`` to ``N * D``, without biases.  Its weights are buffers:
    saved with the model, unseen by optimisers.  Their scale makes the entries of the first W as large as
    those of an ordinary gate.

    Args:
        dim, num_experts: D and N.
        hidden: hidden width of H; ``None`` takes D / 4.
        init_std: standard deviation of W's entries at the start.
    """

    first: Tensor
    second: Tensor

    def __init__(self, dim: int, num_experts: int, hidden: int | None = None, init_std: float = 0.02) -> None:
        super().__init__()
        self.num_experts = num_experts
        hidden = hidden if hidden is not None else max(1, dim // 4)
        self.embedding = nn.Parameter(torch.randn(dim))
        self.register_buffer("first", torch.randn(hidden, dim) * dim**-0.5)
        # relu of a standard normal has mean square 1/2.
        self.register_buffer(
            "second", torch.randn(num_experts * dim, hidden) * init_std * math.sqrt(2 / hidden)
        )

    def weight(self) -> Tensor:
        """``W [N, D]`` as generated now."""
        hidden = F.relu(self.first @ self.embedding)
        return (self.second @ hidden).view(self.num_experts, -1)

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN`` in at least float32, under autocast too."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.to(dtype), self.weight().to(dtype))
