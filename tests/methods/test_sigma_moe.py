"""Sigma-MoE (arXiv 2310.10837): gates that do not compete, dense initialisation, regulariser, expert dropout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import UsageEntropyLoss
from libmoe.methods.sigma_moe import equal_rows_
from libmoe.routers import SigmoidRouter, TopKRouter
from libmoe.testing import check_loss, check_router

N, D, H = 8, 12, 48


def build(training: bool = False, site: Site | None = None, **options: Any) -> MoELayer:
    place = site or Site(D, H, activation="relu", gated=False, seed=0)
    layer = libmoe.create("sigma-moe", {"num_experts": N, "top_k": 3} | options).build_layer(place)
    return layer.double().train(training)


def route(logits_TN: Tensor, training: bool = False, **options: Any) -> Routing:
    n = logits_TN.shape[1]
    router = SigmoidRouter(n, n, gate=torch.nn.Identity(), renormalise=False, **options).train(training)
    return router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training))


def test_with_all_experts_on_it_is_the_dense_relu_network_of_all_units() -> None:
    layer = build(top_k=N)
    with torch.no_grad():
        layer.router.gate.weight.zero_()
    layer.router.gate.forward = lambda x_TD: torch.full((len(x_TD), N), 50.0, dtype=x_TD.dtype)
    x = torch.randn(5, D, dtype=torch.float64)
    w_in, w_out = layer.experts.w_in.flatten(0, 1), layer.experts.w_out.permute(1, 0, 2).flatten(1)
    assert w_in.shape == (H, D) and w_out.shape == (D, H)  # the width of the dense layer, not of K experts
    assert torch.allclose(layer(x.unsqueeze(0))[0], F.relu(x @ w_in.T) @ w_out.T, atol=1e-12)


def test_a_larger_logit_of_one_expert_leaves_the_weights_of_the_others_as_they_were() -> None:
    logits_TN = torch.tensor([[2.0, 1.0, 0.5, -1.0]], dtype=torch.float64)
    louder_TN = logits_TN + torch.tensor([[3.0, 0.0, 0.0, 0.0]])
    before, after = (route(z, top_k=3).plan.weight_A for z in (logits_TN, louder_TN))
    assert torch.equal(before[1:], after[1:]) and after[0] > before[0]
    assert torch.equal(before, logits_TN[0, :3].sigmoid())
    softmax = TopKRouter(4, 4, 3, gate=torch.nn.Identity(), renormalise=False)
    ctx = ForwardContext().layer(0, (1, 1), False)
    before, after = (softmax.route(z, ctx).plan.weight_A for z in (logits_TN, louder_TN))
    assert (before[1:] - after[1:]).abs().min() > 0.05, "a softmax competes"


@pytest.mark.parametrize("gated", [False, True])
def test_initial_weights_are_those_of_one_network_of_width_n_times_g(gated: bool) -> None:
    n, g, depth = 16, 32, 6
    layer = build(site=Site(256, n * g, activation="relu", gated=gated, seed=0), num_experts=n, depth=depth)
    gain, gate = math.sqrt(2 / depth), layer.router.gate.weight.detach()
    assert float(layer.experts.w_out.detach().std()) == pytest.approx(gain / math.sqrt(n * g), rel=0.02)
    assert float(layer.experts.w_in.detach().std()) == pytest.approx(gain / math.sqrt(256), rel=0.02)
    lengths = gate.norm(dim=1)
    assert float((lengths - lengths.mean()).abs().max()) < 1e-6
    assert float(gate.std()) == pytest.approx(gain / math.sqrt(256), rel=0.03)


def test_making_rows_equally_long_keeps_the_standard_deviation_and_the_directions() -> None:
    weight = torch.randn(5, 40, dtype=torch.float64) * torch.arange(1.0, 6.0).unsqueeze(1)
    before = weight.clone()
    equal_rows_(weight)
    assert float(weight.std()) == pytest.approx(float(before.std()), rel=1e-9)
    assert torch.allclose(F.cosine_similarity(weight, before), torch.ones(5, dtype=torch.float64))


def test_regulariser_is_of_the_mean_over_tokens_and_reaches_experts_that_were_not_chosen() -> None:
    loss, n = UsageEntropyLoss(1.0, "micro_batch"), 4
    ctx = ForwardContext().layer(0, (1, n), True)

    def value(logits_TN: Tensor) -> Tensor:
        plan = SparsePlan.from_topk(logits_TN.argmax(1, keepdim=True), torch.ones(len(logits_TN), 1), n)
        numerator, tokens = loss.compute(Routing(plan, logits_TN), ctx)
        return numerator / tokens

    sure = 60 * torch.eye(n, dtype=torch.float64)  # each token is sure, together they use all experts
    assert float(value(sure)) == pytest.approx(-math.log(n))
    assert float(value(sure[:1].expand(n, n))) == pytest.approx(0, abs=1e-12)
    logits_TN = torch.randn(n, n, dtype=torch.float64, requires_grad=True)
    found = value(logits_TN)
    assert -math.log(n) <= found.item() <= 0
    p_N = logits_TN.detach().softmax(1).mean(0)
    assert found.item() == pytest.approx(float((p_N * p_N.log()).sum()))
    (grad_TN,) = torch.autograd.grad(found, logits_TN)
    assert (grad_TN != 0).all()


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_regulariser_keeps_the_contract_of_losses(scope: Any) -> None:
    check_loss(UsageEntropyLoss(0.1, scope))
    with pytest.raises(ConfigError, match=r"'sequence' or 'micro_batch'"):
        UsageEntropyLoss(0.1, "global_batch")


def test_evaluation_is_deterministic_with_expert_dropout() -> None:
    x = torch.randn(1, 20, D, dtype=torch.float64)
    layer = build(expert_dropout=0.5)
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), build()(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_a_dropped_expert_is_not_chosen_while_others_are_left_and_nothing_is_rescaled() -> None:
    logits_TN = torch.randn(4000, N, dtype=torch.float64) * 0.1
    plan = route(logits_TN, True, top_k=1, expert_dropout=0.3).plan
    # The best is out of reach for a share of tokens that is the rate, and then the second best is taken.
    best_T1 = logits_TN.argmax(1)
    assert float((plan.expert_A != best_T1).double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(plan.weight_A, logits_TN.sigmoid()[torch.arange(4000), plan.expert_A])


def test_expert_dropout_near_one_gives_zeros_and_no_nan() -> None:
    logits_TN = torch.randn(50, N, dtype=torch.float64, requires_grad=True)
    plan = route(logits_TN, True, top_k=3, expert_dropout=1 - 1e-12).plan
    assert not plan.weight_A.any()
    (grad_TN,) = torch.autograd.grad(plan.weight_A.sum(), logits_TN)
    assert grad_TN.isfinite().all()
    layer = build(True, expert_dropout=0.99)
    y = layer(torch.randn(1, 30, D, dtype=torch.float64))
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


def test_dropout_works_with_any_top_k_router() -> None:
    check_router(lambda: TopKRouter(16, 6, 2, expert_dropout=0.4))
    with pytest.raises(ConfigError, match="expert_dropout=1"):
        TopKRouter(16, 6, 2, expert_dropout=1.0)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="'dense'"):
        libmoe.create("sigma-moe", init="dens")
    with pytest.raises(ConfigError, match="depth=0"):
        libmoe.create("sigma-moe", depth=0)
