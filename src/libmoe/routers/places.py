"""Rules of an expert's places: how they are counted, who shares them, and who is served first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.capacity import Priority, capacity, keep_within
from libmoe.routers.groups import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from libmoe.core.context import LayerContext

Queue = Literal["position", "score", "random"]
Rounding = Literal["choices", "tokens", "share", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """
    Attributes:
        minimum: an expert has this many places at least.
        rounding: how the places of each expert are counted for T tokens with k choices each and a factor f:

            * ``choices``: ``ceil(f k T / N)`` (arXiv 2101.03961 eq. 3);
            * ``tokens``: ``k ceil(f T / N)`` (arXiv 2112.10684, arXiv 2203.14685);
            * ``share``: ``k int(f ceil(T / N))`` (arXiv 2206.03382);
            * ``nearest``: ``round(f k T / N)`` (arXiv 2106.05974).
        multiple: and then up to a multiple of this.
        group: tokens that share places: the ``batch``, or those of a ``sequence``, which then do not depend on others.
        priority: ``choice`` serves all first choices before any second choice, ``token`` token after token.
        queue: which tokens are served first: the earlier ones (``position``), those with the highest best score
            (``score``: batch-prioritised routing, arXiv 2106.05974 §4), or any, drawn anew each time (``random``:
            random token selection, arXiv 2109.10465 §3); outside training that is ``position``.

    Raises:
        ConfigError: a value that there is not.
    """

    minimum: int = 0
    rounding: Rounding = "choices"
    multiple: int = 1
    group: Group = "batch"
    priority: Priority = "choice"
    queue: Queue = "position"

    def __post_init__(self) -> None:
        for name, kind in (("rounding", Rounding), ("group", Group), ("priority", Priority), ("queue", Queue)):
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                raise unknown(f"{name} of places", value, choices)
        if self.multiple < 1:
            raise ConfigError(f"multiple={self.multiple} of places must be at least 1")

    def count(self, tokens: int, k: int, num_experts: int, factor: float) -> int:
        """Places of each expert."""
        if self.rounding == "choices":
            slots = capacity(tokens * k, num_experts, factor)
        elif self.rounding == "nearest":
            slots = math.floor(factor * tokens * k / num_experts + 0.5)
        elif self.rounding == "tokens":
            slots = k * capacity(tokens, num_experts, factor)
        else:
            slots = k * int(factor * math.ceil(tokens / num_experts))
        return max(-(-slots // self.multiple) * self.multiple, self.minimum)

    def order(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor | None:
        """int64 ``[T]``: the tokens in the order in which they are served; ``None``: as they come."""
        if self.queue == "score":
            return scores_TN.max(dim=-1).values.argsort(descending=True, stable=True)
        if self.queue == "random" and ctx.training:
            generator = ctx.generator("queue", scores_TN.device)
            return torch.randperm(len(scores_TN), generator=generator, device=scores_TN.device)
        return None

    def keep(
        self,
        expert_TK: Tensor,
        scores_TN: Tensor,
        ctx: LayerContext,
        count: Callable[[int, int], list[int]],
        asking_TK: Tensor | None = None,
    ) -> Tensor:
        """bool ``[T, K]`` of the choices that find a place; padding never takes one.

        Args:
            count: ``(tokens, k)`` to the places of each expert.
            asking_TK: choices that ask for a place; ``None``: all.
        """
        k, num_experts = expert_TK.shape[1], scores_TN.shape[1]
        real_T = torch.ones_like(expert_TK[:, 0], dtype=torch.bool) if ctx.mask_T is None else ctx.mask_T
        sizes = [int(real_T.sum())]
        if self.group == "sequence":  # every sequence has experts of its own, as far as places go
            group_T = ctx.sequence_T.to(expert_TK.device)
            sizes = torch.bincount(group_T[real_T], minlength=int(group_T[-1]) + 1 if len(group_T) else 0).tolist()
            expert_TK = expert_TK + num_experts * group_T.unsqueeze(1)
        slots = [slot for tokens in sizes for slot in count(tokens, k)]
        capacity_N = torch.tensor(slots, dtype=torch.long, device=expert_TK.device)
        asking_TK = real_T.unsqueeze(1).expand(-1, k) if asking_TK is None else asking_TK & real_T.unsqueeze(1)
        return keep_within(expert_TK, capacity_N, asking_TK, self.priority, self.order(scores_TN, ctx))
