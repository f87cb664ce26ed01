"""Adaptive gating: a further expert only where it is nearly as probable as the best one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.variable import VariableKRouter

Compare = Literal["difference", "ratio"]
Renormalise = Literal["several", "none", "all"]


class GapRouter(VariableKRouter):
    """The best expert, and those of the next K - 1 that are close to it in ``p = softmax(W x)`` (arXiv 2310.07188).

    With K = 2 as published: one expert where the gate is sure, two where ``p_(1) - p_(2) <= T``.

    Args:
        top_k: K, the most experts of a token.
        threshold: T.  Below 0 every token has one expert, from 1 on all have K.
        compare: ``difference`` as above, or ``ratio``: close are experts with ``p_(j) >= (1 - T) p_(1)``, a rule that
            means the same for any number of experts and any sharpness of the gate.
        renormalise: whose weights are divided by their sum: of tokens with ``several`` experts, so that a lone expert
            keeps its p and with it the router's gradient; of ``none``; or of ``all``.
        expected_k: as in :class:`~libmoe.routers.variable.VariableKRouter`, like the further options.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        threshold: float = 0.1,
        compare: Compare = "difference",
        renormalise: Renormalise = "several",
        expected_k: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, expected_k, **options)
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        if compare not in ("difference", "ratio"):
            raise unknown("way to compare", compare, ["difference", "ratio"])
        if renormalise not in ("several", "none", "all"):
            raise unknown("value of renormalise", renormalise, ["several", "none", "all"])
        self.top_k, self.threshold = top_k, threshold
        self.compare, self.renormalise = compare, renormalise

    def choose(self, scores_TN: Tensor) -> Tensor:
        best_TK, expert_TK = scores_TN.topk(self.top_k, dim=-1)
        first_T1 = best_TK[:, :1]
        unit_T1 = first_T1 if self.compare == "ratio" else torch.ones_like(first_T1)
        close_TK = first_T1 - best_TK <= self.threshold * unit_T1
        close_TK[:, 0] = True
        return torch.zeros_like(scores_TN, dtype=torch.bool).scatter(1, expert_TK, close_TK)

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, mask_TN: Tensor) -> Tensor:
        if self.renormalise == "none":
            return scores_TN
        total_T1 = scores_TN.masked_fill(~mask_TN, 0).sum(dim=-1, keepdim=True)
        if self.renormalise == "several":
            total_T1 = total_T1.masked_fill(mask_TN.sum(dim=-1, keepdim=True) < 2, 1.0)
        return scores_TN / total_T1.clamp_min(torch.finfo(scores_TN.dtype).tiny)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, threshold={self.threshold:g}"
