"""Edits of the weights of a finished decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention, check_experts, experts_by_layer
from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from libmoe.core.context import ForwardContext, LayerContext
    from libmoe.core.routing import Routing


class ScaleExperts(Intervention):
    """Multiply the weights with which tokens use single experts, where they do (RICE, arXiv 2505.14681).

    The paper takes the two experts that :meth:`libmoe.analysis.metrics.npmi.MarkerCounts.ranked` puts first for the
    tokens ``<think>`` and ``</think>``, and the factor 64.  Who is chosen stays as it is;
    :class:`~libmoe.core.interventions.selection.ForceExperts` and
    :class:`~libmoe.core.interventions.logits.ScaleLogits` change that, which the paper leaves open.  Where weights
    multiply the inputs of experts, it is these that grow.

    Args:
        experts: pairs of layer and expert.
        renormalise: a token's weights add up to what they did before.
        where: from a layer's view of the forward pass to bool ``[T]``, the tokens meant (:class:`Between`); ``None``:
            all, those of the prompt too.
    """

    def __init__(
        self,
        experts: Iterable[tuple[int, int]],
        factor: float = 64.0,
        *,
        renormalise: bool = False,
        where: Callable[[LayerContext], Tensor] | None = None,
    ) -> None:
        self.experts = experts_by_layer(experts)
        super().__init__(self.experts)
        self.factor, self.renormalise, self.where = factor, renormalise, where

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = self.sparse(routing, ctx)
        chosen = self.experts[ctx.index]
        check_experts("scale", chosen, plan.num_experts, ctx)
        scaled_A = torch.isin(plan.expert_A, torch.tensor(chosen, device=plan.expert_A.device))
        if self.where is not None:
            scaled_A = scaled_A & self.where(ctx).to(scaled_A.device)[plan.token_A]
        weight_A = torch.where(scaled_A, plan.weight_A * self.factor, plan.weight_A)
        if self.renormalise:
            weight_A = with_sums_of(plan, weight_A)
        return replace(routing, plan=replace(plan, weight_A=weight_A))


def with_sums_of(plan: SparsePlan, weight_A: Tensor) -> Tensor:
    """``weight_A`` times a factor for each token, so that its weights add up to those of ``plan``."""
    zero_T = weight_A.new_zeros(plan.num_tokens)
    before_T = zero_T.index_add(0, plan.token_A, plan.weight_A)
    after_T = zero_T.index_add(0, plan.token_A, weight_A)
    return weight_A * torch.where(after_T == 0, 1.0, before_T / after_T.where(after_T != 0, 1.0))[plan.token_A]


class Between:
    """From each token ``start`` to the next ``end``, both included: for ``where`` of :class:`ScaleExperts`.

    It remembers from one forward pass to the next which rows are inside, so that it works token by token in
    generation.  A pass that does not continue the last one (several tokens without earlier ones in its mask) begins
    outside.

    Args:
        start, end: token ids.
    """

    def __init__(self, start: int, end: int) -> None:
        if start == end:
            raise ConfigError(f"start and end are the same token {start}; name two")
        self.start, self.end = start, end
        self._forward: ForwardContext | None = None
        self._inside_BL = torch.zeros(0, 1, dtype=torch.bool)
        self._ended_B = torch.zeros(0, dtype=torch.bool)  # by the last token seen

    def __call__(self, ctx: LayerContext) -> Tensor:
        if self._forward is not ctx.forward:  # held, so that a new context can never share its identity
            self._inside_BL, self._forward = self._find(ctx), ctx.forward
        return self._inside_BL.flatten()

    def _find(self, ctx: LayerContext) -> Tensor:
        id_BL = ctx.token_ids_T.view(ctx.batch_shape)
        batch, length = id_BL.shape
        mask = ctx.tokens.mask
        continues = mask.shape[1] > length if mask is not None else length == 1
        open_B = torch.zeros(batch, dtype=torch.bool, device=id_BL.device)
        if continues and len(self._ended_B) == batch:
            open_B = (self._inside_BL[:, -1] & ~self._ended_B).to(id_BL.device)
        self._ended_B = id_BL[:, -1] == self.end
        place_L = torch.arange(1, length + 1, device=id_BL.device)
        begun_BL = torch.where(id_BL == self.start, place_L, 0).cummax(1).values
        ended_BL = torch.where(id_BL == self.end, place_L, 0).cummax(1).values
        ended_BL = torch.cat([ended_BL.new_zeros(batch, 1), ended_BL[:, :-1]], 1)  # the end itself is inside
        return (begun_BL > ended_BL) | (open_B.unsqueeze(1) & (ended_BL == 0))
