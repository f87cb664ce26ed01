"""Nucleus routing: as many experts as it takes to gather a share of the probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.routers.variable import VariableKRouter


class TopPRouter(VariableKRouter):
    """The most probable experts until their probabilities, ``softmax(W x)`` over all N, sum to more than p.

    The expert that crosses p is among them, so that there is always one; p of 1 or more takes all.  Sums are taken in
    float32 at least.  Weights are the probabilities themselves, not divided by their sum: a layer's output is scaled
    by the mass chosen, from p to 1.

    Args:
        threshold: p.
        reach: ``True`` stops as soon as the sum *equals* p (arXiv 2403.18926); ``False`` goes on until it exceeds p
            (arXiv 2403.07652 as released).  Both agree but for sums of exactly p.
        options: those of :class:`~libmoe.routers.variable.VariableKRouter`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        expected_k: float = 2,
        *,
        threshold: float = 0.4,
        reach: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, expected_k, **options)
        if not threshold >= 0:
            raise ConfigError(f"threshold={threshold} must not be negative; 0 is top-1, 1 takes all experts")
        self.threshold, self.reach = threshold, reach

    def choose(self, scores_TN: Tensor) -> Tensor:
        if self.threshold >= 1:
            return torch.ones_like(scores_TN, dtype=torch.bool)
        p_TN = scores_TN.to(torch.promote_types(scores_TN.dtype, torch.float32)).clamp_min(0)
        # What an intervention forbids leaves its mass to the others, as if it had no logit.
        p_TN = p_TN / p_TN.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(p_TN.dtype).tiny)
        sorted_TN, expert_TN = p_TN.sort(dim=-1, descending=True, stable=True)
        before_TN = sorted_TN.cumsum(dim=-1).roll(1, dims=-1)
        before_TN[:, 0] = -1  # the first is always chosen
        wanted_TN = before_TN < self.threshold if self.reach else before_TN <= self.threshold
        return torch.zeros_like(wanted_TN).scatter(1, expert_TN, wanted_TN)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold:g}"
