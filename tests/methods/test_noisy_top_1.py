"""Noisy top-1 (arXiv 2208.02813 §4): uniform noise in the choice alone, from an undecided start; normalised steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.controllers import StepInfo
from libmoe.controllers.normalised_gradient import NormalisedExpertGradient
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN, FFNExperts, GroveExperts, ModuleExperts, UnionExperts
from libmoe.layers import MoELayer
from libmoe.routers import TopKRouter

N, D = 6, 12


def build(**options: Any) -> MoELayer:
    return libmoe.create("noisy-top-1", {"num_experts": N} | options).build_layer(Site(D, 16, seed=0, init_std=0.3))


def route(layer: MoELayer, x_BLD: Tensor, training: bool = True) -> Routing:
    layer.train(training)
    ctx = ForwardContext().layer(0, tuple(x_BLD.shape[:2]), training)
    return layer.router(x_BLD.flatten(0, 1), ctx)


def decided(layer: MoELayer, scale: float = 1.0) -> MoELayer:
    """With a router that has learned something."""
    for parameter in layer.router.parameters():
        nn.init.normal_(parameter, std=scale)
    return layer


def test_at_first_every_expert_is_as_likely_and_without_noise_one_gets_all() -> None:
    x = torch.randn(20, 200, D)
    assert all((p == 0).all() for p in build().router.parameters())
    share_N = route(build(), x).plan.load_N() / 4000
    assert float((share_N - 1 / N).abs().max()) < 4 * math.sqrt((N - 1) / N**2 / 4000)
    for layer, training in ((build(noise=0.0), True), (build(), False)):
        assert int((route(layer, x, training).plan.load_N() > 0).sum()) == 1


def test_noise_decides_the_choice_and_never_the_weight() -> None:
    layer, x = decided(build(), 0.1), torch.randn(4, 50, D)
    routing = route(layer, x)
    h_TN = x.flatten(0, 1) @ layer.router.gate.weight.T
    plan = routing.plan
    torch.testing.assert_close(plan.weight_A, h_TN.softmax(1)[torch.arange(200), plan.expert_A])
    torch.testing.assert_close(routing.logits_TN, h_TN)
    assert 0.2 < float((plan.expert_A != h_TN.argmax(1)).float().mean()) < 0.9
    assert torch.equal(route(layer, x, training=False).plan.expert_A, h_TN.argmax(1))


def test_the_notebooks_multiply_by_the_noisy_logit() -> None:
    layer, x = decided(build(gates="logit"), 0.1), torch.randn(4, 50, D)
    routing = route(layer, x)
    noise_TN = (routing.logits_TN - x.flatten(0, 1) @ layer.router.gate.weight.T).detach()
    assert float(noise_TN.min()) >= -1e-6 and 0.9 < float(noise_TN.max()) <= 1
    plan = routing.plan
    assert torch.equal(plan.expert_A, routing.logits_TN.argmax(1))
    torch.testing.assert_close(plan.weight_A, routing.logits_TN.max(1).values)


def test_a_logit_ahead_by_the_width_is_never_overtaken() -> None:
    layer, x = decided(build(noise=0.5), 0.4), torch.randn(4, 200, D)
    h_TN = x.flatten(0, 1) @ layer.router.gate.weight.T
    first, second = h_TN.topk(2, dim=1).values.unbind(1)
    clear = first - second > 0.5
    chosen = route(layer, x).plan.expert_A
    assert torch.equal(chosen[clear], h_TN.argmax(1)[clear])
    assert (chosen[~clear] != h_TN.argmax(1)[~clear]).any()


def test_a_sequence_can_be_judged_as_one_by_the_mean_of_its_tokens() -> None:
    layer, x = decided(build(decision="sequence")), torch.randn(30, 5, D)
    for training in (True, False):
        plan = route(layer, x, training).plan
        expert_BL = plan.expert_A.view(30, 5)
        assert (expert_BL == expert_BL[:, :1]).all() and len(expert_BL.unique()) > 1
        h_BN = x.mean(1) @ layer.router.gate.gate.weight.T
        expected = h_BN.softmax(1).gather(1, expert_BL[:, :1]).expand(-1, 5)
        torch.testing.assert_close(plan.weight_A.view(30, 5), expected)
    assert not layer.router.causal and build().router.causal


# -- normalised steps -------------------------------------------------------------------------------------


def trained_once(layer: MoELayer, lr: float = 0.1) -> dict[str, float]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    info = StepInfo(layer, optimizer)
    layer.train()
    (layer(torch.randn(1, 3, D)) - 5).square().mean().backward()
    NormalisedExpertGradient().after_backward(info)
    optimizer.step()
    return info.metrics


@pytest.mark.parametrize("kind", ["stacked", "modules"])
def test_each_expert_moves_by_the_learning_rate_or_not_at_all(kind: str) -> None:
    torch.manual_seed(0)
    bank = FFNExperts(N, D, 8) if kind == "stacked" else ModuleExperts(FFN(D, 8) for _ in range(N))
    layer = MoELayer(TopKRouter(D, N, 1), bank)
    before = [bank.materialise(e) for e in range(N)]
    metrics = trained_once(layer)
    moved = []
    for e in range(N):
        pairs = zip(bank.materialise(e).parameters(), before[e].parameters(), strict=True)
        moved.append(float(torch.stack([(p - q).detach().norm() for p, q in pairs]).norm()))
    assert all(length == pytest.approx(0.1, rel=1e-4) or length == 0 for length in moved)
    assert 1 <= sum(length > 0 for length in moved) <= 3, "three tokens reach three experts at most"
    assert 0 < metrics["normalised_gradient/smallest"] <= metrics["normalised_gradient/largest"]


def test_the_router_is_left_alone() -> None:
    layer = MoELayer(TopKRouter(D, N, 1, renormalise=False), FFNExperts(N, D, 8))
    layer(torch.randn(1, 9, D)).square().mean().backward()
    before = layer.router.gate.weight.grad.clone()
    NormalisedExpertGradient().after_backward(StepInfo(layer))
    assert torch.equal(layer.router.gate.weight.grad, before)


def test_experts_that_share_parameters_are_refused() -> None:
    layer = MoELayer(TopKRouter(D, 4, 4), GroveExperts(FFNExperts(4, D, 8), 2, 4, zero_init=False))
    layer(torch.randn(1, 9, D)).square().mean().backward()
    with pytest.raises(ConfigError, match=r"GroveExperts\.adjugates.* belongs to no expert alone.*normalise=false"):
        NormalisedExpertGradient().after_backward(StepInfo(layer))


def test_experts_of_several_kinds_are_normalised_one_by_one() -> None:
    bank = UnionExperts([FFNExperts(2, D, 8), FFNExperts(3, D, 8)])
    layer = MoELayer(TopKRouter(D, 5, 5), bank)
    layer(torch.randn(1, 9, D)).square().mean().backward()
    NormalisedExpertGradient().after_backward(StepInfo(layer))
    for part in bank.parts:
        for expert in range(part.num_experts):
            norm = torch.stack([p.grad[expert].norm() for p in part.parameters()]).norm()
            assert float(norm) == pytest.approx(1, rel=1e-5)


def test_the_method_brings_its_steps_and_can_leave_them_out() -> None:
    (controller,) = libmoe.create("noisy-top-1").build_controllers()
    assert isinstance(controller, NormalisedExpertGradient)
    assert not libmoe.create("cluster-moe-theory", {"normalise": False}).build_controllers()
    assert isinstance(route(build(), torch.randn(1, 4, D)).plan, SparsePlan)


def test_options_out_of_range_are_refused() -> None:
    for options, says in (
        ({"top_k": 2}, "top_k=2.*noisy-top-k"),
        ({"noise": -1.0}, "noise=-1"),
        ({"decision": "sequenc"}, "'sequence'"),
        ({"gates": "logits"}, "'logit'"),
    ):
        with pytest.raises(ConfigError, match=says):
            libmoe.create("noisy-top-1", options)
