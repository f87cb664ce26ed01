"""Experts near at hand: for some steps tokens use those of their own group alone (gating dropout)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError


class LocalGate(nn.Module):
    """Another gate's logits, ``-inf`` for experts of other groups while :attr:`local` is set, in training.

    N experts and the T tokens of a forward pass are both cut, in order, into as many equal parts as there are groups,
    as experts and sequences lie on devices.  Any router whose scores come from a softmax or a sigmoid then sends a
    token to experts of its own part.  Where the groups divide the sequences of a batch, none is cut.

    Args:
        gate: from ``x_TD`` to ``logits_TN``.
        num_experts: N.
        groups: how many devices there would be.

    Attributes:
        local: set by :class:`~libmoe.controllers.gating_dropout.GatingDropout` before each step.
    """

    def __init__(self, gate: nn.Module, num_experts: int, groups: int) -> None:
        super().__init__()
        if groups < 1 or num_experts % groups:
            raise ConfigError(f"devices={groups} must divide num_experts={num_experts}")
        self.gate, self.num_experts, self.groups, self.local = gate, num_experts, groups, False

    def forward(self, x_TD: Tensor) -> Tensor:
        logits_TN = self.gate(x_TD)
        if not (self.training and self.local):
            return logits_TN
        token_T = torch.arange(len(x_TD), device=x_TD.device)
        home_T = token_T * self.groups // max(len(x_TD), 1)
        home_N = torch.arange(self.num_experts, device=x_TD.device) * self.groups // self.num_experts
        return logits_TN.masked_fill(home_T.unsqueeze(1) != home_N, -math.inf)
