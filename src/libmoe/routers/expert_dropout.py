"""Experts that are out of reach for a while, as if there were fewer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError


class DroppingGate(nn.Module):
    """Another gate's logits, ``-inf`` for experts that are dropped while training.

    Any router whose scores come from a softmax or a sigmoid then gives them no probability, no token and no gradient.
    Outside training all experts are there.

    Args:
        gate: from ``x_TD`` to ``logits_TN``.
        num_experts: N.

    Attributes:
        alive_N: bool buffer, saved with the model; set by
            :class:`~libmoe.controllers.expert_dropout.ExpertDropout`.
    """

    alive_N: Tensor

    def __init__(self, gate: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.gate = gate
        self.register_buffer("alive_N", torch.ones(num_experts, dtype=torch.bool))

    def forward(self, x_TD: Tensor) -> Tensor:
        logits_TN = self.gate(x_TD)
        return logits_TN.masked_fill(~self.alive_N, -math.inf) if self.training else logits_TN


def survivors(num_experts: int, clusters: int, rate: float) -> int:
    """``floor((1 - rate) * N / clusters)``: how many experts of each cluster are left.

    Raises:
        ConfigError: clusters of unequal size, a rate outside [0, 1), or nobody left.
    """
    if clusters < 1 or num_experts % clusters:
        raise ConfigError(f"clusters={clusters} must divide num_experts={num_experts}")
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_rate={rate} must be at least 0 and below 1")
    left = math.floor((1 - rate) * (num_experts // clusters) + 1e-9)
    if not left:
        raise ConfigError(f"drop_rate={rate} leaves no expert of {num_experts // clusters}; use less or fewer clusters")
    return left
