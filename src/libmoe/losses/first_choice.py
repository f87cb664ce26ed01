"""Load-balancing losses that count some choices and not others: the first of each token, or lone ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.plan import SparsePlan
from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import LOCAL_SCOPES

if TYPE_CHECKING:

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class PartialBalanceLoss(BalanceLoss):
    """Base of balance losses whose f counts only a part of the plan: see :meth:`counted`; P is over all tokens.

    Args:
        scope: ``sequence`` or ``micro_batch``; what is counted over a whole optimiser step are all choices.
    """

    name = "partial_balance"
    scopes = LOCAL_SCOPES

    def counted(self, plan: SparsePlan, scores_TN: Tensor) -> Tensor:
        """bool ``[A]`` of the assignments that f counts, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no counted()")

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        plan, scores_TN = self.sparse(routing), self.scores(routing)
        on_A = self.counted(plan, scores_TN.detach())
        part = replace(
            plan, token_A=plan.token_A[on_A], expert_A=plan.expert_A[on_A], weight_A=plan.weight_A[on_A], k=None,
            kept_A=None, extra_A={},
        )  # fmt: skip
        return super().compute(replace(routing, plan=part), ctx)


class FirstChoiceBalanceLoss(PartialBalanceLoss):
    """``L = N * sum_i f_i P_i`` with ``f_i`` the share of tokens whose best expert is i; 1 at perfect balance.

    As :class:`~libmoe.losses.balance.BalanceLoss` for top-1 routing, whatever k: second and further choices do not
    count (GShard, arXiv 2006.16668 alg. 1; the connectors of CuMo, arXiv 2405.05949, and MoCHA, arXiv 2507.22805,
    in their released form ``N^2 * mean_i(f_i P_i)``, which is the same).  The first of k choices is the best; where
    their number varies, the best is that with the highest score.
    """

    name = "first_choice_balance"

    def counted(self, plan: SparsePlan, scores_TN: Tensor) -> Tensor:
        place_A = torch.arange(len(plan.token_A), device=plan.token_A.device)
        if plan.k is not None:
            return place_A % plan.k == 0
        score_A = scores_TN[plan.token_A, plan.expert_A]
        best_T = score_A.new_full((plan.num_tokens,), -torch.inf)
        best_T = best_T.scatter_reduce(0, plan.token_A, score_A, "amax")
        # Of equal scores the earlier one: one choice counts for each token.
        place_A = torch.where(score_A == best_T[plan.token_A], place_A, len(place_A))
        first_T = place_A.new_full((plan.num_tokens,), len(place_A))
        first_T = first_T.scatter_reduce(0, plan.token_A, place_A, "amin")
        return first_T[plan.token_A] == torch.arange(len(place_A), device=place_A.device)


class LoneChoiceBalanceLoss(PartialBalanceLoss):
    """``L = N * sum_i f_i P_i`` with ``f_i`` the share of i in the tokens that have a single expert.

    Tokens with several experts do not count in f, though in P, and a batch of such tokens alone costs nothing
    (adaptive gating, arXiv 2310.07188 §3.2).
    """

    name = "lone_choice_balance"

    def counted(self, plan: SparsePlan, scores_TN: Tensor) -> Tensor:
        return torch.bincount(plan.token_A, minlength=plan.num_tokens)[plan.token_A] == 1
