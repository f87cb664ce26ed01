"""Estimators that give every expert's score a gradient: dense, and ReinMax for one sampled expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, SparsePlan, plan_from_tensors
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.estimators import DenseGradient, Estimator, ReinMax
from libmoe.estimators.dense import DenseGradientPlan
from libmoe.experts import FFNExperts, ValueExperts
from libmoe.layers import MoELayer
from libmoe.models.accounting import account
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.routers import TopKRouter
from libmoe.routers.noise import GumbelNoise
from libmoe.testing import check_method

D, N, T = 6, 4, 9


def make(estimator: Estimator | None, **given: Any) -> MoELayer:
    torch.manual_seed(0)
    router = TopKRouter(D, N, **({"top_k": 2, "renormalise": False} | given))
    nn.init.normal_(router.gate.weight)
    return MoELayer(router, FFNExperts(N, D, 5, init_std=None), estimator=estimator).double()


def context(tokens: int = T, training: bool = True) -> LayerContext:
    return ForwardContext().layer(0, (1, tokens), training)


# -- dense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"renormalise": True}, {"top_k": 1}, {"capacity_factor": 0.5}])
def test_values_are_those_of_the_chosen_experts_alone(given: dict[str, Any]) -> None:
    x = torch.randn(2, T, D, dtype=torch.double)
    dense, sparse = make(DenseGradient(), **given), make(None, **given)
    torch.testing.assert_close(dense(x), sparse(x))
    torch.testing.assert_close(dense.eval()(x), sparse.eval()(x))
    assert type(dense.route(x[0], context(training=False)).plan) is SparsePlan, "nothing more is computed in evaluation"


def test_the_router_gets_the_gradient_of_the_mixture_of_all_experts() -> None:
    """``dL/dz = J^T (<g, E_1>, ..., <g, E_N>)`` with g = dL/dy of the sparse output, token by token."""
    layer, x_TD = make(DenseGradient()), torch.randn(T, D, dtype=torch.double)
    grad_TD = torch.randn(T, D, dtype=torch.double)
    layer(x_TD[None]).backward(grad_TD[None])
    weight_ND = layer.router.gate.weight.detach()
    expected_ND = torch.zeros_like(weight_ND)
    for x_D, g_D in zip(x_TD, grad_TD, strict=True):
        p_N = (weight_ND @ x_D).softmax(0)
        slope_N = torch.stack([g_D @ layer.experts.materialise(e)(x_D).detach() for e in range(N)])
        expected_ND += torch.outer(p_N * (slope_N - p_N @ slope_N), x_D)
    torch.testing.assert_close(layer.router.gate.weight.grad, expected_ND)
    sparse = make(None)
    sparse(x_TD[None]).backward(grad_TD[None])
    assert not torch.allclose(sparse.router.gate.weight.grad, expected_ND)


def test_it_is_the_finite_difference_of_a_layer_where_all_scores_may_move() -> None:
    """A loss linear in the output, so that the straight-through gradient is that of a function."""
    layer, x_TD, c_TD = make(DenseGradient()), torch.randn(T, D).double(), torch.randn(T, D).double()
    (layer(x_TD[None])[0] * c_TD).sum().backward()
    weight_ND = layer.router.gate.weight

    @torch.no_grad()
    def mixture() -> Tensor:
        p_TN = (x_TD @ weight_ND.T).softmax(-1)
        all_TND = torch.stack([layer.experts.materialise(e)(x_TD) for e in range(N)], 1)
        return (torch.einsum("tn,tnd->td", p_TN, all_TND) * c_TD).sum()

    for index in ((0, 0), (2, 5), (3, 1)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight_ND[index] += sign * 1e-6
                values.append(mixture())
                weight_ND[index] -= sign * 1e-6
        torch.testing.assert_close(weight_ND.grad[index], (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_experts_learn_from_the_tokens_that_chose_them_alone() -> None:
    x, gradients = torch.randn(1, T, D, dtype=torch.double), []
    for estimator in (DenseGradient(), None):
        layer = make(estimator)
        layer(x).square().sum().backward()
        gradients.append(layer.experts.w_in.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_renormalised_weight_keeps_its_own_gradient() -> None:
    layer, x_TD = make(DenseGradient(), renormalise=True), torch.randn(T, D, dtype=torch.double)
    routing, plain = layer.route(x_TD, context()), make(None, renormalise=True).route(x_TD, context())
    assert isinstance(routing.plan, DenseGradientPlan)
    torch.testing.assert_close(routing.plan.weight_A, plain.plan.weight_A)
    (chosen,) = torch.autograd.grad(routing.plan.weight_A[::2].sum(), layer.router.gate.weight)
    assert chosen.any()


def test_loads_losses_and_records_see_what_was_chosen() -> None:
    x_TD, statistics = torch.randn(T, D, dtype=torch.double), StepStatistics()
    with libmoe.options(statistics=statistics):
        plan = make(DenseGradient()).route(x_TD, context()).plan
    assert statistics.seen[0].count_N.sum() == 2 * T and plan.k == 2
    stored = plan_from_tensors(plan.to_tensors())
    assert isinstance(stored, DenseGradientPlan) and torch.equal(stored.expert_A, plan.expert_A)


def test_training_is_charged_for_all_experts_and_inference_is_not() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=77)
    costs = {
        name: account(libmoe.moeify(build_backbone(config), "smoe", options={"estimator": name}, seed=0))
        for name in ("none", "straight-through", "dense")
    }
    assert costs["straight-through"] == costs["none"]
    assert costs["dense"].flops_per_token == costs["none"].flops_per_token
    more = costs["dense"].train_flops_per_token - costs["none"].train_flops_per_token
    assert more == pytest.approx(3 * 2 * 6 * (2 * 3 * 32 * 24 + 2 * 32))  # passes, layers, further experts, their work


# -- ReinMax ----------------------------------------------------------------------------------------------


def expected_gradient(z_N: Tensor, value_ND: Tensor, loss: Callable[[Tensor], Tensor], estimator: Estimator) -> Tensor:
    """Over all N choices, by their probability."""
    experts = ValueExperts(N, value_ND.shape[1]).double()
    experts.value.data.copy_(value_ND)
    total_N = torch.zeros(N, dtype=torch.double)
    for expert in range(N):
        logits_TN = z_N[None].clone().requires_grad_()
        p_TN = logits_TN.softmax(-1)
        plan = SparsePlan.from_topk(torch.tensor([[expert]]), p_TN[:, expert : expert + 1], N)
        routing = estimator.apply(Routing(plan, logits_TN, p_TN), context(1))
        y_TD = experts.execute(torch.zeros(1, value_ND.shape[1], dtype=torch.double), routing.plan)
        torch.testing.assert_close(y_TD[0], value_ND[expert])
        total_N += p_TN[0, expert].detach() * torch.autograd.grad(loss(y_TD[0]), logits_TN)[0][0]
    return total_N


def exact_gradient(z_N: Tensor, value_ND: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    z_N = z_N.clone().requires_grad_()
    return torch.autograd.grad(sum(p * loss(v) for p, v in zip(z_N.softmax(0), value_ND, strict=True)), z_N)[0]


class DenseHard(DenseGradient):
    """Straight-through for one choice with weight 1, as ReinMax has it: ``D + p - stop_gradient(p)``."""

    def apply(self, routing: Routing, ctx: LayerContext) -> Routing:
        routing = super().apply(routing, ctx)
        weight_A = routing.plan.weight_A
        routing.plan.weight_A = weight_A + (1 - weight_A).detach()
        return routing


@pytest.mark.parametrize("seed", range(4))
def test_reinmax_is_exact_for_quadratic_losses_on_average_and_straight_through_for_linear_ones(seed: int) -> None:
    torch.manual_seed(seed)
    z_N, value_ND, c_D = torch.randn(N).double(), torch.randn(N, D).double(), torch.randn(D).double()

    def linear(y_D: Tensor) -> Tensor:
        return c_D @ y_D + 1

    def quadratic(y_D: Tensor) -> Tensor:
        return (y_D - c_D).square().sum()

    def cubic(y_D: Tensor) -> Tensor:
        return (c_D @ y_D) ** 3

    close = {
        (name, loss.__name__): torch.allclose(
            expected_gradient(z_N, value_ND, loss, estimator), exact_gradient(z_N, value_ND, loss), rtol=0, atol=1e-11
        )
        for name, estimator in (("reinmax", ReinMax()), ("straight-through", DenseHard()))
        for loss in (linear, quadratic, cubic)
    }
    assert close == {
        ("reinmax", "linear"): True,
        ("reinmax", "quadratic"): True,
        ("reinmax", "cubic"): False,
        ("straight-through", "linear"): True,
        ("straight-through", "quadratic"): False,
        ("straight-through", "cubic"): False,
    }


def test_switch_samples_from_its_probabilities_when_asked_to_and_takes_the_best_in_evaluation() -> None:
    layer = libmoe.create("switch", num_experts=N, selection="sampled", jitter=0.0, capacity_factor=None).build_layer(
        Site(D, 12, seed=0)
    )
    assert isinstance(layer.router.selection_noise, GumbelNoise)
    x_TD = torch.randn(1, D).expand(20_000, D) * 10
    routing = layer.train().route(x_TD, context(20_000))
    share_N = torch.bincount(routing.plan.expert_A, minlength=N) / 20_000
    assert float((share_N - routing.scores_TN[0]).abs().max()) < 0.02
    torch.testing.assert_close(routing.plan.weight_A, routing.scores_TN[0][routing.plan.expert_A])
    later = layer.eval().route(x_TD[:5], context(5, False))
    assert (later.plan.expert_A == later.scores_TN[0].argmax()).all()


def test_weights_of_reinmax_are_1_in_training_and_evaluation() -> None:
    for training in (True, False):
        layer = make(ReinMax(), top_k=1, selection_noise=GumbelNoise()).train(training)
        plan = layer.route(torch.randn(T, D, dtype=torch.double), context(training=training)).plan
        torch.testing.assert_close(plan.weight_A, torch.ones(T, dtype=torch.double))


# -- both -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "reinmax"])
def test_methods_name_them_and_the_contract_is_kept(name: str) -> None:
    check_method("switch", {"estimator": name, "selection": "sampled", "capacity_factor": 1.0})
    if name == "dense":
        check_method("grove-moe", {"estimator": name})
        check_method("top-p-routing", {"estimator": name})


def test_plans_that_they_cannot_serve_are_refused() -> None:
    merged = Routing(MergePlan(torch.rand(1, N), 3))
    with pytest.raises(ConfigError, match="the dense estimator needs a sparse plan"):
        DenseGradient().apply(merged, context(3))
    with pytest.raises(ConfigError, match="chooses one expert; set top_k=1"):
        make(ReinMax()).route(torch.randn(T, D).double(), context())
    with pytest.raises(ConfigError, match="this router scales inputs"):
        make(DenseGradient(), scale_input=True).route(torch.randn(T, D).double(), context())
    plan = make(DenseGradient()).route(torch.randn(T, D).double(), context()).plan
    with pytest.raises(ConfigError, match="one input for all experts of a token"):
        plan.execute(FFNExperts(N, D, 5).double(), torch.randn(T, D).double(), torch.randn(2 * T, D).double())
