"""Sigmoid gating: each expert is scored by itself, only the chosen ones compete."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from libmoe.routers.topk import TopKRouter

LossScores = Literal["softmax", "normalised"]


class SigmoidRouter(TopKRouter):
    """Top-k on ``sigmoid(logits)``, weights divided by their sum plus 1e-20.

    Args:
        loss_scores_from: probabilities that balance losses see, whose rows must sum to 1.  ``softmax`` takes
            the softmax of the logits, which this router uses for nothing else (LIBMoE, arXiv 2411.00918);
            ``normalised`` divides the sigmoid scores by their sum (DeepSeek-V3, arXiv 2412.19437 eq. 19).
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        loss_scores_from: LossScores = "softmax",
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        self.loss_scores_from = loss_scores_from

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.sigmoid()

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        weight_TK = scores_TN.gather(1, expert_TK)
        if self.renormalise:
            # Unlike a softmax, all scores of a token may underflow to 0 at once.
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return weight_TK

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        if self.loss_scores_from == "softmax":
            return logits_TN.softmax(dim=-1)
        return scores_TN / (scores_TN.sum(dim=-1, keepdim=True) + 1e-20)
