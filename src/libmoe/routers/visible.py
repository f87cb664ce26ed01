"""Routing with a mask by token id: which experts an id may use at all is drawn once (MaskMoE)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.seeding import derive_seed
from libmoe.routers.hash import hash_priority
from libmoe.routers.ids import ids_below
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class VisibleRouter(VariableKRouter):
    """Top-k of ``softmax(W x)`` over the experts that the token's id may see (MaskMoE, arXiv 2407.09816).

    Frequent ids see ``frequent_visible`` random experts, all others ``rare_visible``, in every layer others; with
    one in sight the weight is 1, the expert is the id's for good, and the gate learns nothing from the token.  A token
    that sees fewer than k experts uses those.  Weights are the probabilities, not divided by their sum.

    Who sees what is a hash of the id, the layer and the seed: nothing has to be stored but which ids are frequent.
    Until this is said (:func:`set_frequent`), all are.  Where a model is not given ids (patches of images), all experts
    are in sight.

    Args:
        dim, num_experts, top_k: D, N, K.
        vocab_size: number of ids.
        frequent_visible, rare_visible: experts that an id may use.
        seed: of the draw.
        options: those of :class:`~libmoe.routers.variable.VariableKRouter`.

    Attributes:
        frequent_V: bool buffer, saved with the model.  It belongs to one tokenizer.
    """

    frequent_V: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        vocab_size: int,
        frequent_visible: int = 8,
        rare_visible: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, most=top_k, **options)
        for name, value in (("frequent_visible", frequent_visible), ("rare_visible", rare_visible)):
            if not 1 <= value <= num_experts:
                raise ConfigError(f"{name}={value} must be between 1 and num_experts={num_experts}")
        self.seed = seed
        self.frequent_visible, self.rare_visible = frequent_visible, rare_visible
        self.register_buffer("frequent_V", torch.ones(vocab_size, dtype=torch.bool))

    def visible(self, ctx: LayerContext, device: torch.device) -> Tensor | None:
        """bool ``[T, N]``; ``None`` for all."""
        if ctx.tokens.ids is None:
            return None
        token_T = ids_below(len(self.frequent_V), ctx, device)
        priority_TN = hash_priority(token_T, self.num_experts, derive_seed(self.seed, "visible", ctx.index))
        rank_TN = priority_TN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        in_sight_T = torch.where(self.frequent_V[token_T], self.frequent_visible, self.rare_visible)
        return rank_TN < in_sight_T.unsqueeze(1)

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        logits_TN = super().logits(x_TD, ctx)
        visible_TN = ctx.memo("visible", lambda: self.visible(ctx, x_TD.device))
        return logits_TN if visible_TN is None else logits_TN.masked_fill(~visible_TN, -math.inf)

    def choose(self, scores_TN: Tensor) -> Tensor:
        return scores_TN > 0


def frequent_ids(count_V: Tensor, mass: float) -> Tensor:
    """bool ``[V]``: the commonest ids that make up ``mass`` of all tokens, the one that crosses it included."""
    order_V = count_V.argsort(descending=True, stable=True)
    sorted_V = count_V[order_V].double()
    before_V = torch.cat([sorted_V.new_zeros(1), sorted_V.cumsum(0)[:-1]])
    frequent_V = torch.zeros(len(count_V), dtype=torch.bool)
    frequent_V[order_V] = (before_V < mass * sorted_V.sum()) & (sorted_V > 0)
    return frequent_V
