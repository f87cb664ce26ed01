"""Routing in two steps, first to a group of experts and then to experts inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.routers.capacity import capacity, keep_within
from libmoe.routers.gates import LinearGate
from libmoe.routers.groups import rows_of_groups
from libmoe.routers.topk import TopKRouter


class BiLevelGate(nn.Module):
    """Logits whose softmax over all N = n m experts is ``p_i q_j``, expert ``i m + j`` being number j of group i.

    ``p = softmax(W_p x)`` over n groups and ``q = softmax(W_q x)`` over m places in a group, with D (n + m) parameters
    instead of D n m (SMILE, arXiv 2212.05191 §3.1).

    Args:
        groups, size: n and m.
        own_places: each group has a W_q of its own, ``q^i``.
    """

    def __init__(self, dim: int, groups: int, size: int, own_places: bool = False) -> None:
        super().__init__()
        self.own_places = own_places
        self.group, self.place = LinearGate(dim, groups), LinearGate(dim, size * (groups if own_places else 1))

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN`` in at least float32."""
        group_TG, place_TP = self.group(x_TD), self.place(x_TD)
        if self.own_places:  # normalised in each group, or a group's logits would depend on its places'
            place_TGE = place_TP.unflatten(-1, (group_TG.shape[-1], -1)).log_softmax(dim=-1)
        else:
            place_TGE = place_TP.unsqueeze(1)
        return (group_TG.unsqueeze(2) + place_TGE).flatten(1)


class HierarchicalRouter(TopKRouter):
    """The group whose experts are most probable together, and the k most probable experts in it.

    Over ``p = softmax(logits)``, N experts form equal contiguous groups, one for each device or node, and a token uses
    experts of one of them: it is sent once (the switch-and-mixture gate of HetuMoE, arXiv 2203.14685).  With a
    :class:`BiLevelGate` the probability of a group is p_i.

    Args:
        groups: how many.
        two_hops: places are taken twice (arXiv 2212.05191): a group accepts ``factor T / n`` tokens, and each of its m
            experts ``factor k / m`` times as many choices as it has accepted tokens.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.

    Raises:
        ConfigError: groups are unequal or smaller than k.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        groups: int,
        two_hops: bool = False,
        renormalise: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=renormalise, **options)
        if groups < 1 or num_experts % groups:
            raise ConfigError(f"groups={groups} must divide num_experts={num_experts}")
        self.groups, self.size, self.two_hops = groups, num_experts // groups, two_hops
        self._fits(top_k)

    def _fits(self, k: int) -> int:
        if k > self.size:
            raise ConfigError(f"top_k={k} experts of one group: groups={self.groups} have {self.size} each")
        return k

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        k = self._fits(ctx.top_k(self.top_k))
        choice_TGE = ctx.edit_scores(scores_TN).unflatten(1, (self.groups, self.size))
        open_TGE = ~choice_TGE.isneginf()
        mass_TG = choice_TGE.masked_fill(~open_TGE, 0).sum(dim=-1)
        group_T11 = mass_TG.masked_fill(open_TGE.sum(dim=-1) < k, -1).argmax(dim=-1).view(-1, 1, 1)
        inside_TE = choice_TGE.gather(1, group_T11.expand(-1, 1, self.size)).squeeze(1)
        return group_T11.squeeze(2) * self.size + inside_TE.topk(k, dim=-1).indices

    def keep(
        self, expert_TK: Tensor, scores_TN: Tensor, ctx: LayerContext, asking_TK: Tensor | None = None
    ) -> Tensor | None:
        factor = self.factor
        if not self.two_hops or factor is None:
            return super().keep(expert_TK, scores_TN, ctx, asking_TK)
        kept_TK = torch.zeros_like(expert_TK, dtype=torch.bool)
        for token_L in rows_of_groups(len(expert_TK), expert_TK.device, ctx, self.places.group):
            order_L = self.places.order(scores_TN[token_L], ctx)
            asking_LK = None if asking_TK is None else asking_TK[token_L]
            kept_TK[token_L] = self._keep_twice(expert_TK[token_L], factor, order_L, asking_LK)
        return kept_TK

    def _keep_twice(
        self, expert_TK: Tensor, factor: float, order_T: Tensor | None, asking_TK: Tensor | None
    ) -> Tensor:
        """The choices that find a place in their group of experts and then at their expert, of real tokens alone."""
        (tokens, k), priority = expert_TK.shape, self.places.priority
        group_T1 = expert_TK[:, :1] // self.size
        slots_G = torch.full((self.groups,), capacity(tokens, self.groups, factor), device=expert_TK.device)
        sent_T = keep_within(group_T1, slots_G, None, priority, order_T).squeeze(1)
        sent_G = torch.bincount(group_T1.squeeze(1)[sent_T], minlength=self.groups)
        slots_N = (sent_G * factor * k / self.size).ceil().long().repeat_interleave(self.size)
        asking = sent_T if asking_TK is None else asking_TK & sent_T.unsqueeze(1)
        return keep_within(expert_TK, slots_N, asking, priority, order_T)
