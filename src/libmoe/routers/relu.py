"""ReLU routing: as many experts as have a positive gate (ReMoE, arXiv 2412.14711)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.routers.variable import VariableKRouter


class ReLURouter(VariableKRouter):
    """``R = ReLU(W x)``: expert e runs for a token when ``R_e > 0`` and its output is multiplied by it.

    Nothing is normalised, selected by rank or dropped, so the layer is continuous in W and its gradient exact.
    A token may use any number of experts, none included.  ``scores_TN`` of the routing are the gates R, which
    do not sum to 1.

    Args:
        dim, num_experts: D, N.
        target_k: average number of experts per token that training aims at (the L1 loss and its controller do
            the aiming).
        eval_threshold: outside training, gates must exceed this to count (0 is the paper's rule; a little
            more saves experts whose gate is a rounding residue in low precision).
        gate: module from ``x_TD`` to ``logits_TN``; a :class:`LinearGate` by default.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        target_k: float,
        *,
        eval_threshold: float = 0.0,
        gate: nn.Module | None = None,
    ) -> None:
        if not 0 < target_k <= num_experts:
            raise ConfigError(
                f"target_k={target_k} must be greater than 0 and at most num_experts={num_experts}"
            )
        if eval_threshold < 0:
            raise ConfigError(
                f"eval_threshold must not be negative, got {eval_threshold}; use 0 for plain ReLU"
            )
        super().__init__(dim, num_experts, target_k, gate=gate)
        self.target_k, self.eval_threshold = target_k, eval_threshold

    def score(self, logits_TN: Tensor) -> Tensor:
        return torch.relu(logits_TN)

    def choose(self, scores_TN: Tensor) -> Tensor:
        return scores_TN > (0.0 if self.training else self.eval_threshold)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, target_k={self.target_k}"
