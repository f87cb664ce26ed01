"""Routing without parameters: each expert looks at its own part of a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.routers.topk import TopKRouter


class PoolingGate(nn.Module):
    """``z_i = scale * mean(x[i D/N : (i + 1) D/N])``: grouped average pooling (arXiv 2401.13920 §3.1).

    A linear gate whose N weights are fixed, orthogonal and of equal norm; computed in at least float32.

    Raises:
        ConfigError: N does not divide D.
    """

    def __init__(self, dim: int, num_experts: int, scale: float = 1.0) -> None:
        super().__init__()
        if dim % num_experts:
            near = max(n for n in range(1, num_experts) if dim % n == 0)
            raise ConfigError(f"num_experts={num_experts} must divide the width {dim} to pool it; {near} does")
        self.dim, self.num_experts, self.scale = dim, num_experts, scale

    def weights(self) -> Tensor:
        """The fixed weights, ``[N, D]``, without the scale."""
        size = self.dim // self.num_experts
        return torch.block_diag(*[torch.full((1, size), 1 / size)] * self.num_experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        return self.scale * x_TD.unflatten(1, (self.num_experts, -1)).mean(-1)


class PooledRouter(TopKRouter):
    """Top-k by :class:`PoolingGate`, weighted by ``softmax(ReLU(z))``.

    Chosen are the largest z, before the ReLU makes all negative ones equal.  Means over D/N features of normalised
    tokens are small, and the softmax of them is nearly uniform: a scale of about ``sqrt(D/N)`` gives logits of size 1.

    Args:
        scale: of the logits.
        relu: ``False`` takes ``softmax(z)``.
        options: others of :class:`~libmoe.routers.topk.TopKRouter`; weights are not renormalised.
    """

    def __init__(
        self, dim: int, num_experts: int, top_k: int = 1, *, scale: float = 1.0, relu: bool = True, **options: Any
    ) -> None:
        gate = PoolingGate(dim, num_experts, scale)
        super().__init__(dim, num_experts, top_k, renormalise=False, gate=gate, **options)
        self.relu = relu

    def score(self, logits_TN: Tensor) -> Tensor:
        return (logits_TN.relu() if self.relu else logits_TN).softmax(dim=-1)

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        return logits_TN
