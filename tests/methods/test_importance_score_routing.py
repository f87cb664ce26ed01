"""Importance-score routing (arXiv 2109.02008 v3): who keeps a place when there are few."""

from __future__ import annotations

import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site

N, D, T = 4, 16, 40


def plan_of(x_TD: Tensor, **options: object) -> tuple[SparsePlan, Tensor]:
    """The plan, and the importance of each token."""
    given = {"num_experts": N, "eval_capacity_factor": 0.5} | options
    router = libmoe.create("importance-score-routing", given).build_layer(Site(D, 32, seed=0)).router.double().eval()
    with torch.no_grad():
        router.gate.weight.mul_(40)
        routing = router.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), False))
    return routing.plan, routing.scores_TN.max(-1).values


def test_kept_are_the_most_important_tokens_of_each_expert_wherever_they_stand() -> None:
    torch.manual_seed(0)
    x, order = torch.randn(T, D, dtype=torch.float64), torch.randperm(T)
    plan, importance_T = plan_of(x)
    places = round(0.5 * T / N)
    dropped = 0
    for expert in range(N):
        mine_T = (plan.expert_A == expert).nonzero().flatten()
        best_T = mine_T[importance_T[mine_T].argsort(descending=True)[:places]]
        assert set(plan.kept_A.nonzero().flatten().tolist()) & set(mine_T.tolist()) == set(best_T.tolist())
        dropped += len(mine_T) - len(best_T)
    assert dropped >= T // 4
    moved, _ = plan_of(x[order])
    assert torch.equal(moved.kept_A, plan.kept_A[order])
    first_come, _ = plan_of(x, batch_priority=False)
    assert not torch.equal(first_come.kept_A, plan.kept_A)
    assert not torch.equal(plan_of(x[order], batch_priority=False)[0].kept_A, first_come.kept_A[order])


def test_an_item_depends_on_its_batch_only_where_places_are_few() -> None:
    torch.manual_seed(1)
    x = torch.randn(T, D, dtype=torch.float64)
    other = torch.cat([x[: T // 2], 3 * torch.randn(T // 2, D, dtype=torch.float64)])
    for factor, same in ((0.5, False), (float(N), True)):
        kept = [plan_of(given, eval_capacity_factor=factor)[0].kept_A[: T // 2] for given in (x, other)]
        assert torch.equal(*kept) == same


def test_what_finds_no_place_gets_nothing_and_weights_are_raw_probabilities() -> None:
    torch.manual_seed(0)
    x = torch.randn(T, D, dtype=torch.float64)
    layer = libmoe.create("importance-score-routing", num_experts=N, eval_capacity_factor=0.5)
    layer = layer.build_layer(Site(D, 32, seed=0)).double().eval()
    y = layer(x.unsqueeze(0))[0]
    routing = layer.router.route(x, ForwardContext().layer(0, (1, T), False))
    assert not y[~routing.plan.kept_A].any() and (y[routing.plan.kept_A].abs().sum(-1) > 0).all()
    assert torch.equal(routing.plan.weight_A, routing.scores_TN.max(-1).values)
    assert [loss.coefficient for loss in layer.losses] == [0.01, 0.01, 0.0, 0.0]
