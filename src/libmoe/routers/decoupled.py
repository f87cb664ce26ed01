"""Chosen by one score, weighted by another: sigmoid with a bias for the choice, softmax for the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.routers.biased import BiasedRouter


class DecoupledRouter(BiasedRouter):
    """Experts are chosen by ``sigmoid(z) + selection_bias`` and weighted by ``softmax(z)`` (arXiv 2508.07785 §2).

    Scores within (0, 1) let the bias move at a constant rate; a router taken from a softmax model keeps what its
    weights mean.  Without bias the choice is that of the logits.

    Args:
        renormalise: divide the weights of the chosen experts by their sum.
        bias_in_evaluation: whether the bias counts outside training too.
        options: those of :class:`~libmoe.routers.biased.BiasedRouter`.
    """

    def __init__(
        self, dim: int, num_experts: int, top_k: int = 2, *, bias_in_evaluation: bool = True, **options: Any
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        self.bias_in_evaluation = bias_in_evaluation

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        if self.training or self.bias_in_evaluation:
            return super().select(scores_TN, ctx)
        return self.limit(ctx.edit_scores(scores_TN)).topk(ctx.top_k(self.top_k), dim=-1).indices

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        if self.renormalise:  # all other terms of the sum cancel
            return self.scaling * logits_TN.gather(1, expert_TK).softmax(dim=-1)
        return self.scaling * torch.softmax(logits_TN, dim=-1).gather(1, expert_TK)
