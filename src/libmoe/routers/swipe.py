"""Balance by reassignment: what an expert has no place for goes to the next one that has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.routers.capacity import capacity, keep_within
from libmoe.routers.topk import TopKRouter


class SwipeRouter(TopKRouter):
    """Top-k whose overflow is moved instead of dropped, while training (FastMoE's swipe gate, arXiv 2103.13262).

    Choice by choice, an expert takes ``ceil(T / N)`` tokens, the earlier ones first; each of the others goes to the
    next expert, by number and around, that still has a place, that the token does not use already and that it may
    use, or to the next of these if none has a place.  Weights are the softmax over the logits of the experts that a
    token has in the end.  A token's experts then depend on all others of the batch; outside training this is plain
    top-k.

    Args:
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int = 2, **options: Any) -> None:
        super().__init__(dim, num_experts, top_k, softmax_after_topk=True, **options)

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        scores_TN = ctx.edit_scores(scores_TN)
        wanted_TK = scores_TN.topk(ctx.top_k(self.top_k), dim=-1).indices
        if not self.training:
            return wanted_TK
        mask_T = torch.ones(len(wanted_TK), dtype=torch.bool, device=wanted_TK.device)
        mask_T = mask_T if ctx.mask_T is None else ctx.mask_T
        slots = capacity(int(mask_T.sum()), self.num_experts, 1.0)
        closed_TN = scores_TN.isneginf()
        columns = []
        for wanted_T in wanted_TK.unbind(1):
            # Experts of the choices before, wherever these went, and not those of the choices still to come.
            expert_T = self._spread(wanted_T, closed_TN, mask_T, slots)
            closed_TN = closed_TN.scatter(1, expert_T.unsqueeze(1), True)
            columns.append(expert_T)
        return torch.stack(columns, dim=1)

    def _spread(self, wanted_T: Tensor, closed_TN: Tensor, mask_T: Tensor, slots: int) -> Tensor:
        """int64 ``[T]``: ``wanted_T``, or the next open expert with a place; without any, the next open one."""
        expert_T, waiting_T = wanted_T.clone(), mask_T
        free_N = torch.full((self.num_experts,), slots, device=wanted_T.device)
        for step in range(self.num_experts):
            next_T1 = (wanted_T.unsqueeze(1) + step) % self.num_experts
            asking_T = waiting_T & ~closed_TN.gather(1, next_T1).squeeze(1)
            found_T = keep_within(next_T1, free_N, asking_T).squeeze(1)
            expert_T = torch.where(found_T, next_T1.squeeze(1), expert_T)
            free_N = free_N - torch.bincount(next_T1.squeeze(1)[found_T], minlength=self.num_experts)
            waiting_T = waiting_T & ~found_T
        away_TN = (torch.arange(self.num_experts, device=wanted_T.device) - wanted_T.unsqueeze(1)) % self.num_experts
        nearest_T = away_TN.masked_fill(closed_TN, self.num_experts).argmin(dim=1)
        return torch.where(waiting_T & ~closed_TN.all(dim=1), nearest_T, expert_T)
