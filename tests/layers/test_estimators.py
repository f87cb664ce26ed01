"""Gradient estimators replace values or gradients of weights; the selection stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from libmoe.core.context import ForwardContext, LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, SparsePlan
from libmoe.core.routing import Routing
from libmoe.estimators import Estimator, StraightThrough
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.routers import TopKRouter

D, N = 6, 4


def make(estimator: Estimator | None) -> MoELayer:
    torch.manual_seed(0)
    router = TopKRouter(D, N, 2, renormalise=False)
    nn.init.normal_(router.gate.weight)
    return MoELayer(router, FFNExperts(N, D, 5, init_std=None), estimator=estimator).double()


def context(tokens: int) -> LayerContext:
    return ForwardContext().layer(0, (1, tokens), training=True)


@pytest.mark.parametrize("value", [1.0, 0.5])
def test_straight_through_uses_hard_values_and_soft_gradients(value: float) -> None:
    x = torch.randn(7, D, dtype=torch.float64)
    hard, soft = make(StraightThrough(value)), make(None)
    grad = torch.randn(7, D, dtype=torch.float64)
    expected, routed = torch.zeros(7, D, dtype=torch.float64), []
    for t, x_D in enumerate(x):
        for e in (soft.router.gate.weight @ x_D).topk(2).indices.tolist():
            output = soft.experts.materialise(e)(x_D).detach()
            expected[t] += value * output
            routed.append((soft.router.gate.weight @ x_D).softmax(0)[e] * (grad[t] @ output))
    y = hard(x)
    torch.testing.assert_close(y, expected)
    y.backward(grad)
    (wanted,) = torch.autograd.grad(sum(routed), soft.router.gate.weight)
    torch.testing.assert_close(hard.router.gate.weight.grad, wanted)


def test_the_selection_stays() -> None:
    x = torch.randn(7, D, dtype=torch.float64)
    plans = [make(e).route(x, context(7)).plan for e in (StraightThrough(), None)]
    assert torch.equal(plans[0].expert_A, plans[1].expert_A)
    assert torch.equal(plans[0].token_A, plans[1].token_A)
    assert (plans[0].weight_A == 1).all()


def test_plans_without_a_choice_are_refused() -> None:
    routing = Routing(MergePlan(torch.rand(1, N), 3))
    with pytest.raises(ConfigError, match="needs a sparse plan"):
        StraightThrough().apply(routing, None)


def test_an_estimator_of_ones_own() -> None:
    class Stop(Estimator):
        """No gradient for the router."""

        def apply(self, routing: Routing, ctx) -> Routing:
            return Routing(routing.plan.map(torch.detach))

    layer = make(Stop())
    layer(torch.randn(3, D, dtype=torch.float64)).sum().backward()
    assert layer.router.gate.weight.grad is None
    assert layer.experts.w_in.grad.any()
    assert isinstance(layer.route(torch.randn(3, D, dtype=torch.float64), context(3)).plan, SparsePlan)
