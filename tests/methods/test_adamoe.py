"""Defining properties of AdaMoE's null experts (arXiv 2406.13233)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer
from libmoe.losses import NullBalanceLoss, NullReward
from libmoe.methods import create
from libmoe.routers import NullExpertRouter
from libmoe.testing import check_loss

N, M, K, DIM, T = 8, 6, 4, 12, 40
SCOPES = ("sequence", "micro_batch", "rank", "global_batch")


def context(tokens: int = T) -> LayerContext:
    return ForwardContext().layer(0, (1, tokens), True)


def make_layer(**more: Any) -> MoELayer:
    chosen = {"num_experts": N, "null_experts": M, "choices": K, "expert_hidden": 8, **more}
    made = create("adamoe", chosen).build_layer(Site(DIM, 8, init_std=0.5, seed=0)).double().eval()
    with torch.no_grad():
        for weight in made.router.parameters():
            weight.mul_(25)
    return made


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, T, DIM, dtype=torch.float64)


def test_without_nulls_it_is_renormalised_top_k(x: Tensor) -> None:
    ours = make_layer(null_experts=0)
    plain = create("smoe", num_experts=N, top_k=K, expert_hidden=8).build_layer(Site(DIM, 8)).double().eval()
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), plain(x))


def test_nulls_that_are_never_chosen_leave_top_k_over_the_experts(x: Tensor) -> None:
    layer, plain = make_layer(), make_layer(null_experts=0)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "null" not in k})
    layer.router.null_gate.forward = lambda x_TD: torch.full((len(x_TD), M), -1e9).double()
    torch.testing.assert_close(layer(x), plain(x))
    assert layer.route(x[0], context()).plan.experts_per_token().tolist() == [K] * T


def test_tokens_that_choose_nulls_alone_get_nothing_and_cost_nothing(x: Tensor) -> None:
    layer = make_layer()
    layer.router.null_gate.forward = lambda x_TD: torch.full((len(x_TD), M), 1e4).double()
    plan = layer.route(x[0], context()).plan
    assert plan.segments.bounds[-1] == 0 and len(plan.token_A) == 0  # no row is computed
    y = layer(x.requires_grad_())
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_which_null_was_chosen_does_not_matter(x: Tensor) -> None:
    layer = make_layer()
    before, counts = layer(x), layer.route(x[0], context()).plan.experts_per_token()
    assert set(counts.tolist()) >= {1, 2, 3}
    with torch.no_grad():
        layer.router.null_gate.weight.copy_(layer.router.null_gate.weight[torch.randperm(M)])
    assert torch.equal(layer(x), before)


def test_weights_of_the_chosen_experts_sum_to_one(x: Tensor) -> None:
    layer = make_layer()
    routing = layer.route(x[0], context())
    plan = routing.plan
    sum_T = torch.zeros(T, dtype=torch.float64).index_add(0, plan.token_A, plan.weight_A)
    torch.testing.assert_close(sum_T, (plan.experts_per_token() > 0).double())
    # Against the definition: top-k of the softmax over everything, divided by the experts' part of the sum.
    p_TC = routing.logits_TN.softmax(1)
    for token in range(T):
        chosen = [c for c in p_TC[token].topk(K).indices.tolist() if c < N]
        on_A = plan.token_A == token
        assert sorted(plan.expert_A[on_A].tolist()) == sorted(chosen)
        p = p_TC[token, plan.expert_A[on_A]]
        torch.testing.assert_close(plan.weight_A[on_A], p / p.sum())


def test_weights_carry_no_gradient_to_the_nulls_and_the_losses_do(x: Tensor) -> None:
    layer = make_layer()
    weight = layer.router.null_gate.weight
    routing = layer.route(x[0], context())
    found = torch.autograd.grad((routing.plan.weight_A**2).sum(), weight, retain_graph=True, allow_unused=True)[0]
    assert found is None or found.abs().max() == 0
    numerator, _ = layer.losses[0].compute(routing, context())
    assert torch.autograd.grad(numerator, weight)[0].abs().max() > 0


def reference(choice_TK: Tensor, p_TC: Tensor, nulls: int) -> Tensor:
    """The published loss: shares of all choices, those of nulls replaced by their mean."""
    f_C = torch.bincount(choice_TK.flatten(), minlength=p_TC.shape[1]).double() / choice_TK.numel()
    f_C[-nulls:] = f_C[-nulls:].mean()
    return p_TC.shape[1] * (f_C * p_TC.mean(0)).sum()


def loss_of(choice_TK: Tensor, p_TC: Tensor, nulls: int, scope: Any = "micro_batch") -> Tensor:
    experts = p_TC.shape[1] - nulls
    mask_TN = torch.zeros_like(p_TC, dtype=torch.bool).scatter(1, choice_TK, True)[:, :experts]
    scores_TN, null_T = p_TC[:, :experts], p_TC[:, experts:].sum(1)
    routing = Routing(
        SparsePlan.from_mask(scores_TN, mask_TN), None, scores_TN / (1 - null_T[:, None]), {"null_T": null_T}
    )
    loss = NullBalanceLoss(1.0, scope, num_null=nulls, top_k=choice_TK.shape[1])
    numerator, denominator = loss.compute(routing, context(len(p_TC)))
    return numerator / denominator


@pytest.mark.parametrize("scope", SCOPES)
def test_the_loss_balances_experts_one_by_one_and_nulls_together(scope: str) -> None:
    logits_TC = torch.randn(T, N + M, dtype=torch.float64)
    p_TC, choice_TK = logits_TC.softmax(1), logits_TC.topk(K).indices
    torch.testing.assert_close(loss_of(choice_TK, p_TC, M, scope), reference(choice_TK, p_TC, M))


def test_moving_choices_and_probability_among_nulls_changes_nothing() -> None:
    logits_TC = torch.randn(T, N + M, dtype=torch.float64)
    order = torch.cat([torch.arange(N), N + torch.randperm(M)])
    other_TC = logits_TC[:, order]
    before, after = (loss_of(z.topk(K).indices, z.softmax(1), M) for z in (logits_TC, other_TC))
    torch.testing.assert_close(before, after)
    # All of the nulls' choices and probability on one of them.
    p_TC, choice_TK = logits_TC.softmax(1), logits_TC.topk(1).indices
    piled_TC = torch.cat([p_TC[:, :N], p_TC[:, N:].sum(1, keepdim=True), torch.zeros(T, M - 1).double()], 1)
    torch.testing.assert_close(loss_of(choice_TK, p_TC, M), loss_of(choice_TK.clamp_max(N), piled_TC, M))


def test_the_loss_is_one_at_balance() -> None:
    p_TC = torch.full((N + M, N + M), 1 / (N + M), dtype=torch.float64)
    choice_TK = (torch.arange(N + M).unsqueeze(1) + torch.arange(K)) % (N + M)
    assert loss_of(choice_TK, p_TC, M).item() == pytest.approx(1.0)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_loss_keeps_the_contract_of_losses(scope: Any) -> None:
    torch.manual_seed(0)
    router = NullExpertRouter(16, 4, 2, num_null=3).double()
    check_loss(NullBalanceLoss(0.1, scope, num_null=3, top_k=2), router)
    check_loss(NullReward(0.1), router)  # composes: any reward for null choices


@pytest.mark.parametrize(("nulls", "k"), [(8, 4), (4, 3), (24, 4)])
def test_balance_brings_the_mean_number_of_experts_to_k_n_of_all_choices(nulls: int, k: int) -> None:
    method = create("adamoe", num_experts=8, null_experts=nulls, choices=k, balance=1.0, expert_hidden=4)
    layer = method.build_layer(Site(DIM, 4, init_std=0.5, seed=1)).train()
    with torch.no_grad():
        layer.router.null_gate.weight[:, 0] += 3.0  # begins away from balance: nulls like what all tokens share
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
    used = []
    for _ in range(150):
        x_TD = torch.randn(256, DIM)
        x_TD[:, 0] = 1.0
        statistics = StepStatistics()
        with options(statistics=statistics):
            loss = 0 * layer(x_TD.unsqueeze(0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        used.append(float(statistics.seen[0].count_N.sum()) / 256)
    expected = k * 8 / (8 + nulls)
    assert used[0] < 0.7 * expected
    assert sum(used[-30:]) / 30 == pytest.approx(expected, rel=0.05)
    assert sum(layer.router.expected_load()) == pytest.approx(expected)


def test_the_nulls_of_a_trained_router_begin_as_copies_of_its_experts() -> None:
    """Rows 0..7 and again 0..7: each expert is given up as often as it is chosen."""
    layer = create("adamoe", num_experts=8, null_experts=16, choices=4, null_init="copy").build_layer(Site(DIM, 8))
    weight = layer.router.gate.weight
    assert torch.equal(layer.router.null_gate.weight, torch.cat([weight, weight]))
    plan = layer.route(torch.randn(300, DIM), context(300)).plan
    assert (plan.experts_per_token() <= 2).all()  # four choices are the best expert and its two copies, and one more
    with pytest.raises(ConfigError, match="did you mean 'copy'"):
        create("adamoe", null_init="copies")


def test_a_banned_expert_leaves_its_place_to_other_choices(x: Tensor) -> None:
    layer = make_layer()
    with options(interventions=[BanExperts([2, 5])]):
        plan = layer.route(x[0], context()).plan
    assert not ((plan.expert_A == 2) | (plan.expert_A == 5)).any() and len(plan.token_A)


@pytest.mark.parametrize(("nulls", "choices"), [(0, 2), (4, 3), (8, 4)])
def test_choices_follow_from_the_experts_that_a_token_is_to_use(nulls: int, choices: int) -> None:
    method = create("adamoe", num_experts=8, top_k=2, null_experts=nulls)
    router = method.build_router(Site(DIM, 16))
    assert router.top_k == choices and sum(router.expected_load()) == 2 and method.hidden(Site(DIM, 16)) == 8
    mixtral = create("adamoe", num_experts=8, choices=3, null_experts=8)
    assert mixtral.mean_k == 1.5 and mixtral.hidden(Site(DIM, 12)) == 8


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"makes top_k=2 2\.5 choices, no whole number; set choices"):
        create("adamoe", num_experts=8, null_experts=2)
    with pytest.raises(ConfigError, match="null_experts=-1"):
        create("adamoe", null_experts=-1)
    with pytest.raises(ConfigError, match="top_k=9 must be between 1 and the 8 experts and nulls"):
        NullExpertRouter(DIM, 5, 9, num_null=3)
