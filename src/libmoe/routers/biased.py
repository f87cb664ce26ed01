"""A bias that steers selection but never the weights: balancing without a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.routers.sigmoid import SigmoidRouter


class BiasedRouter(SigmoidRouter):
    """Experts are chosen by ``score + selection_bias`` and weighted by the score alone.

    Auxiliary-loss-free balancing (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437 eq. 13 and 16).
    ``selection_bias`` is a float32 buffer ``[N]``, saved with the model and moved by
    :class:`~libmoe.controllers.bias_update.BiasUpdate`; no gradient reaches it.

    Args:
        scaling: factor of the weights after renormalisation.
        options: those of :class:`~libmoe.routers.sigmoid.SigmoidRouter`.
    """

    selection_bias: Tensor

    def __init__(
        self, dim: int, num_experts: int, top_k: int = 2, *, scaling: float = 1.0, **options: Any
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        self.scaling = scaling
        self.register_buffer("selection_bias", torch.zeros(num_experts, dtype=torch.float32))

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        choice_TN = ctx.edit_scores(scores_TN + self.selection_bias)
        return self.limit(choice_TN).topk(ctx.top_k(self.top_k), dim=-1).indices

    def limit(self, choice_TN: Tensor) -> Tensor:
        """Selection scores with the experts that a token may not use at ``-inf``; here all are allowed."""
        return choice_TN

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        return super().weigh(scores_TN, logits_TN, expert_TK) * self.scaling

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BiasedRouter:
        before = self.selection_bias
        super()._apply(fn, recurse)
        # The bias moves in steps of about 0.001, which bfloat16 would round away: dtype casts pass it by.
        if self.selection_bias.dtype != before.dtype:
            self.selection_bias = before.to(self.selection_bias.device)
        return self
