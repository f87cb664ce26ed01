"""Edits of what a gate says: selection, weights and losses follow, and gradients pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention, check_experts, experts_by_layer
from libmoe.core.interventions.selection import BanExperts

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class ShiftLogits(Intervention):
    """Add a vector to each token's logits: ``z = W x + delta_l`` (arXiv 2510.14853).

    Args:
        delta: by layer, ``[N]`` for all tokens or ``[B, N]`` with one vector for each row of the batch; they may
            require gradients, and may be changed in place between forward passes.
    """

    def __init__(self, delta: Mapping[int, Tensor]) -> None:
        super().__init__(delta)
        self.delta = delta

    def edit_logits(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        delta, (batch, length) = self.delta[ctx.index], ctx.batch_shape
        num_experts = logits_TN.shape[1]
        rows = delta.shape[0] if delta.dim() == 2 else 1
        if delta.shape[-1] != num_experts or rows not in (1, batch) or (rows > 1 and len(logits_TN) != batch * length):
            raise ConfigError(
                f"delta of layer {ctx.index} has shape {tuple(delta.shape)}; expected ({num_experts},) or "
                f"({batch}, {num_experts})"
            )
        return logits_TN + (delta if rows == 1 else delta.repeat_interleave(length, 0)).to(logits_TN)


class ScaleLogits(Intervention):
    """Multiply the logits of single experts, before selection; a negative logit falls where the factor exceeds 1.

    Args:
        experts: pairs of layer and expert.
    """

    def __init__(self, experts: Iterable[tuple[int, int]], factor: float) -> None:
        self.experts = experts_by_layer(experts)
        super().__init__(self.experts)
        self.factor = factor

    def edit_logits(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        chosen = self.experts[ctx.index]
        check_experts("scale", chosen, logits_TN.shape[1], ctx)
        factor_N = torch.ones_like(logits_TN[:1])
        factor_N[:, chosen] = self.factor
        return logits_TN * factor_N


class PruneExperts(BanExperts):
    """Route as if the experts were not there: what is left of the router's softmax adds up to 1.

    The same as taking them and their rows of the gate out of the model.  :class:`BanExperts` leaves the scores of the
    others as they are.
    """

    def edit_logits(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        check_experts("prune", self.experts, logits_TN.shape[1], ctx)
        hidden_N = torch.zeros(logits_TN.shape[1], dtype=torch.bool, device=logits_TN.device)
        hidden_N[self.experts] = True
        return logits_TN.masked_fill(hidden_N, float("-inf"))
