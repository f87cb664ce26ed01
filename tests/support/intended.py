"""Routers whose experts get the load that routing aims at, for tests of what that costs."""

from __future__ import annotations

import torch

from libmoe.core.context import LayerContext
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing


def as_intended(router: Router, x_TD: torch.Tensor, ctx: LayerContext) -> Routing:
    """The router's own answer, which pays for its own products, with as many assignments as it aims at."""
    routing = router.route(x_TD, ctx)
    if isinstance(routing.plan, SparsePlan):
        tokens = len(x_TD)
        loads = router.training_load() if router.training else router.expected_load()
        count_N = torch.tensor([round(load * tokens) for load in loads])
        expert_A = torch.arange(len(count_N)).repeat_interleave(count_N)
        token_A, order_A = (torch.arange(len(expert_A)) % tokens).sort(stable=True)
        gradient = 0 * routing.plan.weight_A.sum()  # the gate's products are paid for backwards, too
        weight_A = torch.ones(len(expert_A), dtype=routing.plan.weight_A.dtype) + gradient
        k = None if len(expert_A) % tokens else len(expert_A) // tokens
        routing.plan = SparsePlan(token_A, expert_A[order_A], weight_A, tokens, len(count_N), k)
    return routing
