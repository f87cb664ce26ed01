"""Balance among experts and nulls: experts one by one, nulls all together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Scope
from libmoe.losses.frequency import frequencies, group_sums, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class NullBalanceLoss(BalanceLoss):
    """``L = (N + M) * sum_i f_i P_i`` over N experts and M nulls, 1 at perfect balance (AdaMoE, arXiv 2406.13233).

    f are shares of all choices.  Each null counts with the mean share of the nulls, so that only how many choices fall
    on nulls is balanced, not which null they fall on.  The nulls' choices are those of k that made no assignment;
    their probability is ``routing.extras["null_T"]``.

    Args:
        num_null, top_k: M, and the choices of a token.
    """

    name = "null_balance"

    def __init__(self, coefficient: float, scope: Scope = "sequence", *, num_null: int, top_k: int) -> None:
        super().__init__(coefficient, scope)
        self.num_null, self.top_k = num_null, top_k

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN, plan, null_T = self.scores(routing), self.sparse(routing), routing.extras.get("null_T")
        if null_T is None:
            raise ConfigError(f"{self.name} loss needs a router with null experts; this one has none")
        null_T1 = null_T.unsqueeze(1)
        real_TC, tokens = real_tokens(torch.cat([scores_TN * (1 - null_T1), null_T1], dim=1), ctx)
        count_GN, group_T = frequencies(plan, self.scope, ctx, real_TC.dtype)
        share_GN = count_GN / self.top_k
        mean_null_G1 = (1 - share_GN.sum(-1, keepdim=True)) / max(self.num_null, 1)
        share_GC = torch.cat([share_GN, mean_null_G1], dim=1)
        mass_GC = group_sums(real_TC, group_T, len(share_GC))
        return (scores_TN.shape[1] + self.num_null) * (share_GC * mass_GC).sum(), tokens
