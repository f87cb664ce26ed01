"""Defining properties of top-p routing (arXiv 2403.07652)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, DropTopRanked, ForceTopK
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, RoutingEntropyLoss
from libmoe.methods import create
from libmoe.routers import TopPRouter

N, DIM = 16, 16


def route(logits_TN: Tensor, threshold: float, reach: bool = False) -> SparsePlan:
    """Through a router whose gate hands over what it is given."""
    router = TopPRouter(N, logits_TN.shape[1], threshold=threshold, reach=reach, gate=nn.Identity())
    return router(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), False)).plan


def mean_k(logits_TN: Tensor, threshold: float) -> float:
    return route(logits_TN, threshold).experts_per_token().double().mean().item()


def test_a_sure_token_uses_one_expert_and_an_undecided_one_seven_of_sixteen() -> None:
    logits_TN = torch.zeros(3, N, dtype=torch.float64)
    logits_TN[1, 5] = math.log(N)  # p = 16/31 > 0.4
    logits_TN[2, 5] = 50.0
    plan = route(logits_TN, 0.4)
    assert plan.experts_per_token().tolist() == [7, 1, 1]  # 6/16 <= 0.4 < 7/16
    assert plan.expert_A[7:].tolist() == [5, 5]


def test_p_of_zero_is_top_1_and_p_of_one_the_dense_mixture() -> None:
    logits_TN = torch.randn(9, N, dtype=torch.float64)
    p_TN = logits_TN.softmax(1)
    best = route(logits_TN, 0.0)
    assert torch.equal(best.expert_A, p_TN.argmax(1)) and torch.equal(best.token_A, torch.arange(9))
    torch.testing.assert_close(best.weight_A, p_TN.amax(1))
    for p in (1.0, 1.5):
        plan = route(logits_TN, p)
        assert plan.experts_per_token().tolist() == [N] * 9
        torch.testing.assert_close(plan.weight_A.view(9, N), p_TN)


@pytest.mark.parametrize("reach", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.7, 0.95])
def test_the_set_is_minimal_and_in_order_of_probability(threshold: float, reach: bool) -> None:
    logits_TN = 2 * torch.randn(200, N, dtype=torch.float64)
    p_TN = logits_TN.softmax(1)
    plan = route(logits_TN, threshold, reach)
    for token in range(200):
        chosen = plan.expert_A[plan.token_A == token]
        p = p_TN[token, chosen]
        assert p.sum() > threshold >= p.sum() - p.min()
        assert set(chosen.tolist()) == set(p_TN[token].topk(len(chosen)).indices.tolist())


def test_a_sum_of_exactly_p_goes_on_unless_reaching_is_enough() -> None:
    logits_TN = torch.zeros(1, N)
    assert mean_k(logits_TN, 0.375) == 7
    assert route(logits_TN, 0.375, reach=True).experts_per_token().tolist() == [6]


def test_gates_sum_to_the_mass_chosen_and_not_to_one() -> None:
    layer: MoELayer = create("top-p-routing", expert_hidden=8).build_layer(Site(DIM, 8, init_std=0.5)).double()
    x_TD = torch.randn(30, DIM, dtype=torch.float64)
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 30), False))
    plan = routing.plan
    mass_T = torch.zeros(30, dtype=torch.float64).index_add(0, plan.token_A, plan.weight_A)
    torch.testing.assert_close(plan.weight_A, routing.scores_TN[plan.token_A, plan.expert_A])
    assert (mass_T > 0.4).all() and (mass_T < 1).all()
    y_TD = torch.zeros(30, DIM, dtype=torch.float64)
    for token, expert, weight in zip(plan.token_A, plan.expert_A, plan.weight_A, strict=True):
        y_TD[token] += weight * layer.experts.materialise(int(expert))(x_TD[token])
    torch.testing.assert_close(layer.eval()(x_TD.unsqueeze(0))[0], y_TD)


def test_more_p_and_more_temperature_never_use_fewer_experts() -> None:
    logits_TN = torch.randn(100, N, dtype=torch.float64)
    by_p = [route(logits_TN, p).experts_per_token() for p in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    by_heat = [route(3 * logits_TN / t, 0.4).experts_per_token() for t in (0.3, 1.0, 3.0, 10.0, 100.0)]
    for counts in (by_p, by_heat):
        assert all((more >= fewer).all() for fewer, more in pairwise(counts))
        assert counts[-1].sum() > counts[0].sum()


def loss_of(loss: BalanceLoss | RoutingEntropyLoss, logits_TN: Tensor, plan: SparsePlan) -> Tensor:
    routing = Routing(plan, logits_TN, logits_TN.softmax(1))
    numerator, denominator = loss.compute(routing, ForwardContext().layer(0, (1, len(logits_TN)), True))
    return numerator / denominator


def test_the_balance_loss_counts_tokens_that_use_an_expert() -> None:
    """f sums to the mean number of experts per token: uniform probabilities cost that number."""
    logits_TN = torch.randn(40, N, dtype=torch.float64)
    plan, p_TN = route(logits_TN, 0.6), logits_TN.softmax(1)
    uses_TN = torch.zeros(40, N, dtype=torch.float64).index_put((plan.token_A, plan.expert_A), torch.ones(()).double())
    expected = N * (uses_TN.mean(0) * p_TN.mean(0)).sum()
    [balance, _, _] = create("top-p-routing").build_losses(Site(DIM, 8))
    torch.testing.assert_close(loss_of(balance, logits_TN, plan), expected)
    uniform_TN = torch.zeros(4, N, dtype=torch.float64)
    assert loss_of(balance, uniform_TN, route(uniform_TN, 0.4)).item() == pytest.approx(7.0)


def test_the_entropy_penalty_is_stationary_at_certainty_and_at_indecision_alone() -> None:
    logits_TN = torch.zeros(3, 4, dtype=torch.float64)
    logits_TN[1, 2] = 800.0  # the others underflow to 0
    logits_TN[2] = torch.tensor([2.0, 1.0, 0.0, -1.0])
    logits_TN.requires_grad_()
    values = [loss_of(RoutingEntropyLoss(1.0), row_N[None], route(row_N.detach()[None], 0.4)) for row_N in logits_TN]
    p_N = logits_TN[2].detach().softmax(0)
    assert [v.item() for v in values] == pytest.approx([math.log(4), 0.0, -(p_N * p_N.log()).sum().item()])
    torch.stack(values).sum().backward()
    assert logits_TN.grad[:2].abs().max() < 1e-15
    closed = -p_N * (p_N.log() - (p_N * p_N.log()).sum())
    torch.testing.assert_close(logits_TN.grad[2], closed)
    assert closed.abs().min() > 0.01


def test_losses_are_averaged_over_layers_or_added() -> None:
    site = Site(DIM, 8, count=4)
    mean = create("top-p-routing").build_losses(site)
    added = create("top-p-routing", over_layers="sum").build_losses(site)
    assert [loss.coefficient for loss in mean] == pytest.approx([0.01 / 4, 1e-4 / 4, 0])
    assert [loss.coefficient for loss in added] == pytest.approx([0.01, 1e-4, 0])
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        create("top-p-routing", over_layers="means")


def experts_after_training(entropy: float, seed: int) -> float:
    """Experts per token, after learning a linear map that one expert could learn as well as several."""
    torch.manual_seed(seed)
    method = create("top-p-routing", num_experts=8, expert_hidden=16, entropy=entropy)
    layer = method.build_layer(Site(DIM, 16, init_std=0.3)).train()
    centre_D, map_DD = 2 * torch.randn(DIM), torch.randn(DIM, DIM) / 4
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    used: list[float] = []
    for _ in range(200):
        x_TD = centre_D + torch.randn(64, DIM)
        with options(recorders=[lambda _, r: used.append(r.plan.experts_per_token().double().mean().item())]):
            loss = (layer(x_TD.unsqueeze(0))[0] - x_TD @ map_DD).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sum(used[-30:]) / 30


@pytest.mark.parametrize("seed", [0, 1])
def test_training_with_the_penalty_uses_fewer_experts(seed: int) -> None:
    assert experts_after_training(0.1, seed) < experts_after_training(0.0, seed) - 0.4


def test_interventions_leave_the_mass_of_what_they_forbid_to_the_others() -> None:
    logits_TN = torch.randn(20, N, dtype=torch.float64)
    for edit, hidden in (
        (BanExperts([3]), torch.full((20, 1), 3)),
        (DropTopRanked(1), logits_TN.argmax(1, keepdim=True)),
    ):
        with options(interventions=[edit]):
            plan = route(logits_TN, 0.4)
        expected = route(logits_TN.scatter(1, hidden, -torch.inf), 0.4)
        assert torch.equal(plan.expert_A, expected.expert_A) and torch.equal(plan.token_A, expected.token_A)
    with options(interventions=[ForceTopK(2)]):
        assert route(logits_TN, 0.9).experts_per_token().tolist() == [2] * 20


def test_bfloat16_scores_are_summed_in_float32() -> None:
    """256 equal experts: in bfloat16 the running sum would stop growing at 1/2."""
    router = TopPRouter(1, 256, threshold=0.75)
    assert router.choose(torch.full((1, 256), 1 / 256, dtype=torch.bfloat16)).sum() == 193


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold=-0\.1 must not be negative"):
        create("top-p-routing", threshold=-0.1).build_layer(Site(DIM, 8))
