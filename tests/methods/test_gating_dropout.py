"""Gating dropout (arXiv 2205.14336): whole steps in which tokens stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers import StepInfo
from libmoe.controllers.gating_dropout import GatingDropout, local_gates
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.routers.local_experts import LocalGate

N, D = 8, 12


def build(local: bool, training: bool = True, **given: Any) -> MoELayer:
    given = {"capacity_factor": None, "devices": 4} | given
    layer = libmoe.create("gating-dropout", num_experts=N, **given).build_layer(Site(D, 16, seed=0, init_std=0.3))
    nn.init.normal_(layer.router.gate.gate.weight)
    for gate in local_gates(layer):
        gate.local = local
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor) -> Routing:
    return layer.route(x_TD, ForwardContext().layer(0, (4, len(x_TD) // 4), layer.training))


def test_in_a_local_step_a_token_uses_experts_of_its_own_device_as_if_there_were_no_others() -> None:
    layer, x_TD = build(True), torch.randn(40, D).double()
    plan = route(layer, x_TD).plan
    weight_ND = layer.router.gate.gate.weight
    for t in range(40):
        home = t // 10
        assert set(plan.expert_A.view(-1, 2)[t].tolist()) == {2 * home, 2 * home + 1}
        p_2 = (x_TD[t] @ weight_ND[2 * home : 2 * home + 2].T).softmax(0)
        torch.testing.assert_close(plan.weight_A.view(-1, 2)[t], p_2.sort(descending=True).values)


def test_other_steps_and_evaluation_are_those_of_the_router_without_it() -> None:
    x_TD = torch.randn(40, D).double()
    for local, training in ((False, True), (True, False), (False, False)):
        layer = build(local, training)
        plain = libmoe.create("fairseq-moe-lm", num_experts=N, capacity_factor=None, normalise="chosen").build_layer(
            Site(D, 16, seed=0)
        )
        plain.double().train(training).router.gate.weight.data.copy_(layer.router.gate.gate.weight)
        ours, theirs = route(layer, x_TD).plan, route(plain, x_TD).plan
        assert torch.equal(ours.expert_A, theirs.expert_A) and torch.equal(ours.weight_A, theirs.weight_A)
        assert len({e // 2 for e in ours.expert_A[:20].tolist()}) == 4, "tokens go everywhere"


def test_experts_elsewhere_get_no_gradient_and_the_gate_gets_finite_ones() -> None:
    layer = build(True, balance=1.0, z_loss=1.0)
    x_TD = torch.randn(40, D).double()
    routing = route(layer, x_TD)
    layer.execute(x_TD[:10].repeat(4, 1), routing)[:10].square().sum().backward()
    gradient_N = layer.experts.w_in.grad.abs().sum((1, 2))
    assert (gradient_N[:2] > 0).all() and (gradient_N[2:] == 0).all()
    layer(torch.randn(4, 10, D).double()).square().sum().backward()
    assert layer.router.gate.gate.weight.grad.isfinite().all()


def test_steps_are_local_with_the_probability_asked_for_all_layers_together_and_drawn_anew_when_resumed() -> None:
    model = nn.ModuleList([build(False), build(False)])
    controller, info, seen = GatingDropout(0.3, seed=1), StepInfo(model, total_steps=2000), []
    for step in range(2000):
        info.step = step
        controller.before_step(info)
        states = {gate.local for gate in local_gates(model)}
        assert len(states) == 1
        seen.append(states.pop())
        controller.after_step(info)
        assert info.metrics["gating_dropout/local"] == seen[-1]
    assert sum(seen) / 2000 == pytest.approx(0.3, abs=0.03)
    assert seen[100:200] == [GatingDropout(0.3, seed=1).draw(step) for step in range(100, 200)]
    assert seen[:200] != [GatingDropout(0.3, seed=2).draw(step) for step in range(200)]
    info.step = seen.index(True)
    controller.before_step(info)
    controller.finish(info)
    assert not any(gate.local for gate in local_gates(model))


def test_in_a_run_tokens_stay_at_home_in_the_steps_that_say_so() -> None:
    model = TinyLM("gating-dropout", num_experts=4, drop_rate=0.5, capacity_factor=None)
    at_home, local = [], []

    def note(ctx: Any, routing: Routing) -> None:
        home_T = torch.arange(routing.plan.num_tokens) * 2 // routing.plan.num_tokens
        at_home.append(bool((routing.plan.expert_A // 2 == home_T[routing.plan.token_A]).all()))

    with options(recorders=[note]):
        drive(
            model,
            model.method,
            lambda step: model.loss(chain(40, 4, 8, seed=step)),
            20,
            each=lambda info: local.append(bool(info.metrics["gating_dropout/local"])),
        )
    assert at_home == local and 3 < sum(local) < 17


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": 3}, "devices=3 must divide num_experts=8"),
        ({"devices": 8}, "devices=8 must divide num_experts=8 and leave each top_k=2"),
        ({"drop_rate": -0.1}, "gating_dropout=-0.1 is a probability"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(False, **given)
    with pytest.raises(ConfigError, match="devices=3 must divide"):
        LocalGate(nn.Linear(2, 8), 8, 3)
