"""Tokens that no expert suits best go to all of them while training (GW-MoE)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


def routing_entropy(scores_TN: Tensor) -> Tensor:
    """``-sum_i p_i ln(p_i + 1e-5)``, at least 0, of scores divided by their sum: ``[T]`` in nats."""
    p_TN = scores_TN / scores_TN.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores_TN.dtype).tiny)
    return -(p_TN * (p_TN + 1e-5).log()).sum(dim=-1).clamp_max(0)


class BroadcastRouter(Router):
    """Any router; while training, tokens it is uncertain about go to all experts (arXiv 2406.12375 §3).

    A token is uncertain when the entropy of its scores reaches ``threshold * ln N``.  It then uses every expert with
    its probability, ``y = sum_i p_i E_i(x)``, whatever k and the weights of the others, and no place of anybody's
    capacity.  Of each sequence the first ``slots`` uncertain tokens are broadcast, the others routed as ever.  Outside
    training the router is the one inside.

    The released code multiplies the input by p_i where it should multiply the output of expert i, and keeps the last
    expert alone; here all experts answer, as published.

    ``extras["chosen"]`` is what the router inside chose, for losses that balance choices
    (:class:`~libmoe.losses.chosen.ChosenBalanceLoss`).

    Args:
        base: a router that gives scores and sparse plans.
        threshold: share of the greatest entropy there is; more than 1 broadcasts nothing, 0 or less everything.
        slots: tokens of a sequence; ``None`` for all.
    """

    def __init__(self, base: Router, threshold: float = 0.77, slots: int | None = None) -> None:
        super().__init__(base.num_experts)
        if not math.isfinite(threshold):
            raise ConfigError(f"threshold={threshold} must be a number, a share of the greatest entropy")
        if slots is not None and slots < 0:
            raise ConfigError(f"slots={slots} must not be negative; use null for as many as there are tokens")
        self.base, self.threshold, self.slots = base, threshold, slots
        self.causal, self.batch_independent = base.causal, base.batch_independent

    def uncertain(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        """bool ``[T]``: the tokens to broadcast."""
        # A hair below, as entropies of equal scores may fall short of ln N by rounding and by the 1e-5 in them.
        least = self.threshold * routing_entropy(scores_TN.new_ones(1, self.num_experts)) - 1e-6
        uncertain_T = (routing_entropy(scores_TN) >= least) & (self.threshold <= 1)
        if ctx.mask_T is not None:
            uncertain_T = uncertain_T & ctx.mask_T
        if self.slots is None or not len(uncertain_T):
            return uncertain_T
        sequence_T = ctx.sequence_T.to(uncertain_T.device)
        rank_T = uncertain_T.long().cumsum(0)
        of_sequence_G = torch.bincount(sequence_T, weights=uncertain_T.double()).long()
        before_G = of_sequence_G.cumsum(0) - of_sequence_G
        return uncertain_T & (rank_T - before_G[sequence_T] <= self.slots)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = self.base(x_TD, ctx)
        if not self.training:
            return routing
        plan, scores_TN = routing.plan, routing.scores_TN
        if not isinstance(plan, SparsePlan) or scores_TN is None:
            raise ConfigError(f"{type(self.base).__name__} gives no scores to be uncertain about, or no sparse plan")
        uncertain_T = ctx.memo("uncertain", lambda: self.uncertain(scores_TN.detach(), ctx))
        everywhere = broadcast(plan, scores_TN, uncertain_T)
        return replace(routing, plan=everywhere, extras={**routing.extras, "chosen": plan, "uncertain_T": uncertain_T})

    def expected_load(self) -> list[float]:
        return self.base.expected_load()


def broadcast(plan: SparsePlan, scores_TN: Tensor, token_T: Tensor) -> SparsePlan:
    """``plan`` with the marked tokens at all experts, weighed by their scores divided by their sum."""
    left_A = ~token_T[plan.token_A]
    token_U = token_T.nonzero().squeeze(1)
    p_UN = scores_TN[token_U]
    p_UN = p_UN / p_UN.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(p_UN.dtype).tiny)
    expert_U = torch.arange(plan.num_experts, device=token_U.device).repeat(len(token_U))
    kept_A = None
    if plan.kept_A is not None:
        kept_A = torch.cat([plan.kept_A[left_A], torch.ones_like(expert_U, dtype=torch.bool)])
    return SparsePlan(
        torch.cat([plan.token_A[left_A], token_U.repeat_interleave(plan.num_experts)]),
        torch.cat([plan.expert_A[left_A], expert_U]),
        torch.cat([plan.weight_A[left_A], p_UN.flatten().to(plan.weight_A.dtype)]),
        plan.num_tokens,
        plan.num_experts,
        kept_A=kept_A,
        scale_input=plan.scale_input,
    )
