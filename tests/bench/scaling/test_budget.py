"""What to train: closed forms, the papers' numbers, and the direction of the findings of arXiv 2404.02852."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq

from libmoe.bench.scaling import (
    PUBLISHED,
    BudgetSolver,
    Family,
    FlopServing,
    RooflineServing,
    Runs,
    ScalingLaw,
)
from libmoe.core.errors import ConfigError

BUDGET = 1e21


@pytest.fixture
def solver(with_experts: ScalingLaw) -> BudgetSolver:
    return BudgetSolver(with_experts, Family(counts="dense"), RooflineServing(), (1e7, 1e12))


def test_the_dense_optimum_is_the_closed_form(chinchilla: ScalingLaw) -> None:
    c, flops = chinchilla.constants, 5.76e23
    both = c["alpha"] + c["beta"]
    ratio = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / both)
    found = BudgetSolver(chinchilla).loss_optimal(flops)
    assert found.params == pytest.approx(ratio * (flops / 6) ** (c["beta"] / both), rel=1e-5)
    assert found.tokens == pytest.approx((flops / 6) ** (c["alpha"] / both) / ratio, rel=1e-5)
    assert 6 * found.params * found.tokens == pytest.approx(flops)


@pytest.mark.parametrize(("flops", "params"), [(2e19, 354e6), (2.4e20, 2.1e9)])
def test_flame_moe_sizes_follow_from_its_constants(flops: float, params: float) -> None:
    assert BudgetSolver(PUBLISHED["flame-moe"]).loss_optimal(flops).params == pytest.approx(params, rel=0.02)


def test_sizes_of_the_family_are_the_papers() -> None:
    """A Llama of 12 layers, width 768 and FFN 8/3 of it, with experts in every second layer and no embeddings."""
    width, layers, experts = 768, 12, 8
    attention, ffn = 4 * width**2, 3 * width * 2048
    dense = layers * (attention + ffn)
    counted = dense + (layers // 2) * (experts - 1) * ffn
    family = Family(counts="dense")
    assert family.total_params(dense, experts) == pytest.approx(counted, rel=0.03)
    assert family.active_params(dense, 8) == pytest.approx(dense + (layers // 2) * ffn, rel=0.03)
    assert math.prod(Family(aspect=64, counts="dense").shape(dense, 8)) == pytest.approx(
        width * layers, rel=0.01
    )
    active = Family(counts="active")
    assert active.active_params(1e9, 8) == pytest.approx(1e9) and active.total_params(1e9, 1) == 1e9


def test_the_family_of_runs_is_measured() -> None:
    n, d = np.array([1e8, 2e8, 4e8]), 1e9
    made = Family(expert_share=0.4, top_k=2, flops_per_param=6.6)
    total = [made.total_params(x, 16) for x in n]
    runs = Runs.of(n, d, 2.0, experts=16, total=total, flops=6.6 * n * d)
    found = Family.measured(runs)
    assert (found.expert_share, found.flops_per_param) == pytest.approx((0.4, 6.6))


def test_serving_costs_more_with_size_and_with_experts() -> None:
    family, serving = Family(counts="dense"), RooflineServing()
    sizes = np.geomspace(1e8, 2e10, 25)
    for experts in (1, 4, 16):
        costs = [serving.cost(family, n, experts) for n in sizes]
        assert all(a < b or a == b == math.inf for a, b in itertools.pairwise(costs))
    costs = [serving.cost(family, 2e9, experts) for experts in (1, 2, 4, 8, 16, 32)]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert serving.cost(family, 1e12, 8) == math.inf
    devices = [serving.cheapest_devices(family, n, 8) for n in (1e8, 4e9, 3e10)]
    assert devices == sorted(devices) and devices[0] < devices[-1]
    assert FlopServing(1e12).cost(Family(), 1e9, 8) == pytest.approx(2e-3)


def test_touched_experts_grow_from_those_of_one_token_to_all() -> None:
    family = Family(counts="dense")
    assert family.touched_params(1e9, 16, 1) == pytest.approx(family.active_params(1e9, 16))
    assert family.touched_params(1e9, 16, 1e6) == pytest.approx(family.total_params(1e9, 16))


def test_the_smaller_model_of_equal_loss_is_left_of_the_optimum(solver: BudgetSolver) -> None:
    base = solver.loss_optimal(BUDGET, 4)
    for experts in (8, 16, 32):
        best, small = solver.loss_optimal(BUDGET, experts), solver.with_loss(BUDGET, experts, base.loss)
        assert small.loss == pytest.approx(base.loss, abs=1e-6) and small.params < best.params
        assert small.train_flops == pytest.approx(BUDGET) and small.tokens > best.tokens
        equal = solver.with_cost(BUDGET, experts, base.serve_cost)
        assert equal.serve_cost <= base.serve_cost * (1 + 1e-6) and equal.loss < base.loss


def test_overtrained_models_with_more_experts_serve_at_half_the_cost(solver: BudgetSolver) -> None:
    """Sec. 5: for one training budget, 70-85 % smaller than loss-optimal, at about half the cost of four experts."""
    base = solver.loss_optimal(BUDGET, 4)
    flops = math.exp(
        brentq(
            lambda x: solver.loss_optimal(math.exp(x), 16).loss - base.loss, *np.log([BUDGET / 20, BUDGET])
        )
    )
    assert 0.237 < flops / BUDGET < 0.428  # the law is as efficient as the paper's
    for experts in (8, 16, 32):
        small = solver.with_loss(BUDGET, experts, base.loss)
        assert 0.7 < 1 - small.params / solver.loss_optimal(BUDGET, experts).params < 0.9
        assert small.serve_cost < 0.55 * base.serve_cost
    dense = solver.loss_optimal(BUDGET, 1)
    assert (
        solver.with_loss(BUDGET, 8, base.loss).serve_cost < 0.4 * dense.serve_cost and base.loss < dense.loss
    )


def test_loss_optimal_models_with_many_experts_are_cheap_to_train_but_not_to_serve(
    with_experts: ScalingLaw,
) -> None:
    """Where memory is short, a few experts serve best at equal loss, and cost more to train."""
    law = ScalingLaw(with_experts.form, {**with_experts.constants, "B": 0.25})
    solver = BudgetSolver(law, Family(counts="dense"), RooflineServing(), (1e7, 1e12))
    goal = solver.loss_optimal(2e22, 4).loss
    found = {}
    for experts in (1, 4, 8, 16, 32):
        flops = math.exp(
            brentq(
                lambda x, e=experts: solver.loss_optimal(math.exp(x), e).loss - goal, *np.log([1e21, 1e24])
            )
        )
        found[experts] = solver.loss_optimal(flops, experts)
    cheapest = min(found, key=lambda e: found[e].serve_cost)
    assert cheapest in (4, 8)
    assert (
        found[32].serve_cost > 1.1 * found[cheapest].serve_cost and found[1].serve_cost > found[4].serve_cost
    )
    assert found[4].train_flops > 1.2 * found[16].train_flops


def test_the_more_is_served_the_smaller_the_model_and_the_longer_it_trains(solver: BudgetSolver) -> None:
    loss = solver.loss_optimal(BUDGET, 4).loss
    chosen = [solver.for_loss(loss, demand)[0] for demand in (0, 1e10, 1e12, 1e14)]
    for less, more in itertools.pairwise(chosen):
        assert more.params < less.params and more.tokens > less.tokens and more.serve_cost < less.serve_cost
    assert all(one.loss == pytest.approx(loss, abs=1e-6) for one in chosen)
    assert chosen[0].experts == 32  # the cheapest to train
    capped = solver.for_loss(loss, 1e14, max_tokens=3e11)
    assert max(one.tokens for one in capped) <= 3e11 < chosen[-1].tokens
    assert capped[0].total_cost > chosen[-1].total_cost


def test_every_choice_for_some_demand_is_marked_efficient(solver: BudgetSolver) -> None:
    loss = solver.loss_optimal(BUDGET, 4).loss
    for demand in np.geomspace(1e9, 1e15, 13):
        ways = solver.for_loss(loss, demand)
        assert ways[0].efficient
        totals = [way.total_cost for way in ways]
        assert totals == sorted(totals)


def test_the_whole_frontier_is_returned_and_no_marked_choice_is_beaten(solver: BudgetSolver) -> None:
    listed = solver.frontier(BUDGET)
    assert {one.experts for one in listed} == {1, 4, 8, 16, 32} and len(listed) > 100
    assert all(one.train_flops == pytest.approx(BUDGET) for one in listed)
    marked = [one for one in listed if one.efficient]
    for one in marked:
        assert not any(o.loss <= one.loss and o.serve_cost < one.serve_cost for o in listed)
    for one in listed:
        if not one.efficient:
            assert any(o.loss <= one.loss and o.serve_cost <= one.serve_cost for o in marked)
    dense = solver.loss_optimal(BUDGET, 1)
    assert not any(one.experts == 1 and one.loss < 1.2 * dense.loss for one in marked)


def test_questions_without_an_answer_are_refused_in_one_line(
    solver: BudgetSolver, chinchilla: ScalingLaw
) -> None:
    base = solver.loss_optimal(BUDGET, 4)
    with pytest.raises(ConfigError, match=r"1 experts reach .* at best"):
        solver.with_loss(BUDGET, 1, base.loss)
    with pytest.raises(ConfigError, match="out of reach"):
        solver.for_loss(0.5, 1e12)
    with pytest.raises(ConfigError, match="widen params_range"):
        BudgetSolver(chinchilla, params_range=(1e6, 1e7)).loss_optimal(1e22)
    with pytest.raises(ConfigError, match="flops must be positive"):
        solver.loss_optimal(-1.0)
    with pytest.raises(ConfigError, match="experts must be numbers from 1"):
        solver.frontier(BUDGET, (0, 4))
    with pytest.raises(ConfigError, match="two rising positive numbers"):
        BudgetSolver(chinchilla, params_range=(1e9, 1e6))
    with pytest.raises(ConfigError, match="'active' or 'dense', got 'all'"):
        Family(counts="all")
