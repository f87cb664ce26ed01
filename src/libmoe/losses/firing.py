"""Losses of routers whose experts decide by themselves: how often they fire, and how evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import LOCAL_SCOPES, Loss, Scope
from libmoe.losses.frequency import frequencies, group_sums, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


def _gates(loss: Loss, routing: Routing) -> Tensor:
    gates_TN = routing.extras.get("gates_TN")
    if not isinstance(gates_TN, Tensor):
        raise ConfigError(f"{loss.name} loss needs a router whose experts decide by themselves, such as top-any")
    return gates_TN


class FiringShareLoss(Loss):
    """Share of (token, expert) pairs in which the expert fires, from 0 to 1 (DynMoE as released; arXiv 2405.14297)."""

    name = "firing_share"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        real_TN, tokens = real_tokens(_gates(self, routing), ctx)
        return real_TN.sum() / real_TN.shape[1], tokens


class FiringBalanceLoss(BalanceLoss):
    """``N * sum_i f_i P_i`` of DynMoE as released (arXiv 2405.14297).

    f is the share of tokens for which expert i fires, and P the mean of the gates divided by their number, over tokens
    that have an expert.  N counts inactive experts too: at perfect balance of n experts, one for each token, it is N/n.

    Args:
        scope: ``sequence`` or ``micro_batch``; how many tokens of a step have an expert is not counted.
    """

    name = "firing_balance"
    scopes = LOCAL_SCOPES

    def __init__(self, coefficient: float, scope: Scope = "micro_batch") -> None:
        super().__init__(coefficient, scope)

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        gates_TN, plan = _gates(self, routing), self.sparse(routing)
        fired_T1 = gates_TN.detach().sum(dim=1, keepdim=True)
        some_T1 = (fired_T1 > 0).to(gates_TN.dtype)
        columns_TC = torch.cat([gates_TN / fired_T1.clamp_min(1), some_T1, torch.ones_like(some_T1)], dim=1)
        real_TC, tokens = real_tokens(columns_TC, ctx)
        frequency_GN, group_T = frequencies(plan, self.scope, ctx, gates_TN.dtype)
        mass_GN, some_G, tokens_G = group_sums(real_TC, group_T, len(frequency_GN)).split([gates_TN.shape[1], 1, 1], 1)
        return self._dot(frequency_GN, tokens_G * mass_GN / some_G.clamp_min(1)).sum(), tokens
