"""Group-limited selection: each token may use the experts of a few groups only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.routers.biased import BiasedRouter


class GroupLimitedRouter(BiasedRouter):
    """Biased top-k inside each token's best groups (node-limited routing, arXiv 2412.19437 §2.1.2).

    Experts form ``n_group`` contiguous groups, one for each node that holds them.  A group is worth the sum
    of its two highest ``score + bias``; a token's k experts come from its ``topk_group`` best groups, so it
    is sent to that many nodes at most.

    Args:
        n_group: number of groups G; 1 sets no limit.
        topk_group: groups a token may use.
        options: those of :class:`~libmoe.routers.biased.BiasedRouter`.

    Raises:
        ConfigError: the groups are unequal or smaller than two experts, or cannot hold k experts.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        n_group: int = 1,
        topk_group: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        if n_group < 1 or num_experts % n_group or (n_group > 1 and num_experts < 2 * n_group):
            raise ConfigError(
                f"n_group={n_group} must divide num_experts={num_experts} into groups of two experts or more"
            )
        if not 1 <= topk_group <= n_group:
            raise ConfigError(f"topk_group={topk_group} must be between 1 and n_group={n_group}")
        size = num_experts // n_group
        if topk_group * size < top_k:
            raise ConfigError(f"topk_group={topk_group} groups of {size} experts cannot give top_k={top_k}")
        self.n_group, self.topk_group = n_group, topk_group

    def limit(self, choice_TN: Tensor) -> Tensor:
        if self.n_group == self.topk_group:
            return choice_TN
        choice_TGE = choice_TN.unflatten(1, (self.n_group, -1))
        worth_TG = choice_TGE.topk(2, dim=-1).values.sum(dim=-1)
        best_TM = worth_TG.topk(self.topk_group, dim=-1).indices
        closed_TG = worth_TG.new_ones(worth_TG.shape).scatter(1, best_TM, 0).bool()
        return choice_TGE.masked_fill(closed_TG.unsqueeze(-1), float("-inf")).flatten(1)
