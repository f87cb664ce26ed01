"""SparseMixer (arXiv 2310.00811): the gradient of sampling one expert, by the mid-point rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from enumerated import expected_gradient, true_gradient
from libmoe.core.context import ForwardContext
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFNExperts
from libmoe.experts.scaled import ScaledExperts
from libmoe.layers import MoELayer
from libmoe.routers.sparsemixer import MIDPOINT, Quadrature, SparseMixerRouter
from libmoe.testing import check_experts, check_method

N, D = 4, 6
SWITCH = Quadrature(whole=1.0, shrunken=1.0)  # the weight's own gradient and nothing else


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, outputs of experts, and a direction."""
    torch.manual_seed(seed)
    kind = {"dtype": torch.double}
    return torch.randn(N, **kind), torch.randn(N, D, **kind), torch.randn(D, **kind)


def route(logits_TN: Tensor, training: bool, jitter: float = 0.1) -> SparsePlan:
    router = SparseMixerRouter(N, logits_TN.shape[1], 1, jitter=jitter, quadrature=MIDPOINT).train(training)
    router.gate = torch.nn.Identity()
    return router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training)).plan


def build(**given: Any) -> MoELayer:
    return libmoe.create("sparsemixer", num_experts=N, **given).build_layer(Site(D, 20, seed=0, init_std=0.5)).double()


# -- the estimate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_for_a_linear_loss_it_is_exact_on_average_and_switch_has_half_of_it(seed: int) -> None:
    logits_N, expert_ND, c_D = problem(seed)

    def loss(y_D: Tensor) -> Tensor:
        return c_D @ y_D + 3.0

    exact_N = true_gradient(logits_N, expert_ND, loss)
    torch.testing.assert_close(expected_gradient(logits_N, expert_ND, loss, MIDPOINT), exact_N, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected_gradient(logits_N, expert_ND, loss, SWITCH), exact_N / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_for_a_quadratic_loss_it_is_exact_where_the_best_expert_is_shrunken_too(seed: int) -> None:
    logits_N, expert_ND, c_D = problem(seed)

    def loss(y_D: Tensor) -> Tensor:
        return (y_D - c_D).square().sum()

    exact_N = true_gradient(logits_N, expert_ND, loss)
    everywhere = expected_gradient(logits_N, expert_ND, loss, replace(MIDPOINT, best_whole=False))
    torch.testing.assert_close(everywhere, exact_N, rtol=0, atol=1e-12)
    as_used = expected_gradient(logits_N, expert_ND, loss, MIDPOINT)
    best = int(logits_N.argmax())
    p_N = logits_N.softmax(0)
    # Of the best expert the slope at p stands for the mean slope: off by p^2 |E|^2 along the gradient of p.
    jacobian_N = p_N[best] * (torch.nn.functional.one_hot(torch.tensor(best), N) - p_N)
    bias_N = p_N[best] ** 2 * expert_ND[best].square().sum() * jacobian_N
    torch.testing.assert_close(as_used - exact_N, bias_N, rtol=1e-10, atol=1e-12)


def test_for_a_loss_of_any_order_it_is_far_closer_than_switch() -> None:
    def loss(y_D: Tensor) -> Tensor:
        return (0.3 * y_D).exp().sum()

    ours, theirs = 0.0, 0.0
    for seed in range(5):
        logits_N, expert_ND, _ = problem(seed)
        exact_N = true_gradient(logits_N, expert_ND, loss)
        rule = replace(MIDPOINT, best_whole=False)
        ours += float((expected_gradient(logits_N, expert_ND, loss, rule) - exact_N).norm() / exact_N.norm())
        theirs += float((expected_gradient(logits_N, expert_ND, loss, SWITCH) - exact_N).norm() / exact_N.norm())
    assert ours / 5 < 0.01 < 0.3 < theirs / 5


def test_the_gradient_of_a_weight_is_twice_its_probability_s_whatever_its_factor() -> None:
    logits_TN = torch.tensor([[0.5, 0.45, 0.4, 0.3]], dtype=torch.double).repeat(400, 1).requires_grad_()
    plan = route(logits_TN, True, jitter=10.0)
    (gradient_TN,) = torch.autograd.grad(plan.weight_A.sum(), logits_TN)
    p_TN = logits_TN.softmax(-1)
    p_T1 = p_TN.gather(1, plan.expert_A[:, None])
    one_hot_TN = torch.nn.functional.one_hot(plan.expert_A, N)
    torch.testing.assert_close(gradient_TN, (2 * p_T1 * (one_hot_TN - p_TN)).detach())
    factor_T = plan.weight_A / p_T1[:, 0]
    assert set(factor_T.detach().mul(2).round().int().tolist()) == {1, 2}


# -- what is drawn ----------------------------------------------------------------------------------------


def test_experts_are_drawn_from_their_probabilities_and_half_of_the_others_are_halved() -> None:
    logits_TN = torch.tensor([[1.0, 0.9, 0.85, 0.5]], dtype=torch.double).expand(40_000, N)
    plan = route(logits_TN, training=True)
    p_N = logits_TN[0, :3].softmax(0)  # the last is out of reach: (1 - 0.5) / 1 > 0.2
    share_N = torch.bincount(plan.expert_A, minlength=N) / 40_000
    assert float((share_N[:3] - p_N).abs().max()) < 0.01 and share_N[3] == 0
    best = plan.expert_A == 0
    torch.testing.assert_close(plan.weight_A[best], p_N[0].expand(int(best.sum())))
    halved = torch.isclose(plan.weight_A[~best], p_N[plan.expert_A[~best]] / 2)
    assert float(halved.double().mean()) == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(plan.weight_A[~best][~halved], p_N[plan.expert_A[~best]][~halved])


def test_evaluation_is_the_best_expert_with_the_weight_it_has_in_training() -> None:
    logits_TN = torch.randn(2000, N, dtype=torch.double)
    later, again, training = (route(logits_TN, mode) for mode in (False, False, True))
    assert torch.equal(later.expert_A, logits_TN.argmax(1)) and torch.equal(later.weight_A, again.weight_A)
    same = training.expert_A == later.expert_A
    assert 0 < int(same.sum()) < 2000
    torch.testing.assert_close(training.weight_A[same], later.weight_A[same])


def test_a_lone_expert_in_reach_is_certain_and_teaches_the_router_nothing() -> None:
    logits_TN = torch.tensor([[4.0, 1.0, 0.5, -1.0]], dtype=torch.double).requires_grad_()
    plan = route(logits_TN, True)
    assert plan.weight_A.tolist() == [1.0]
    assert not torch.autograd.grad(plan.weight_A.sum(), logits_TN)[0].any()


def test_the_balance_loss_counts_what_was_drawn() -> None:
    layer = build(jitter=100.0).train()
    x_TD = torch.randn(64, D, dtype=torch.double)
    ctx = ForwardContext().layer(0, (1, 64), True)
    routing = layer.router.route(x_TD, ctx)
    p_TN = (x_TD @ layer.router.gate.weight.T).softmax(-1)
    f_N = torch.bincount(routing.plan.expert_A, minlength=N) / 64
    assert not torch.equal(routing.plan.expert_A, p_TN.argmax(1))
    numerator, tokens = layer.losses[0].compute(routing, ctx)
    torch.testing.assert_close(numerator / tokens, N * (f_N.double() * p_TN.mean(0)).sum())


# -- omega ------------------------------------------------------------------------------------------------


def test_omega_begins_as_1_is_shared_and_scales_each_feature_of_the_output() -> None:
    layer, plain = build().eval(), build(scaled=False).eval()
    x = torch.randn(2, 9, D, dtype=torch.double)
    torch.testing.assert_close(layer(x), plain(x))
    omega_D = torch.randn(D, dtype=torch.double)
    with torch.no_grad():
        layer.experts.scale.omega.copy_(omega_D)
    torch.testing.assert_close(layer(x), omega_D * plain(x))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.experts.scale.omega.grad, plain(x).sum((0, 1)))


def test_scaled_experts_keep_the_contract() -> None:
    experts = ScaledExperts(FFNExperts(3, D, 5, init_std=None), D)
    torch.nn.init.normal_(experts.scale.omega)
    check_experts(experts, D)
    check_method("sparsemixer", {"top_k": 2, "scaled": False, "jitter": 1.0})
