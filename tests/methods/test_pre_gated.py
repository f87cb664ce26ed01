"""Pre-gated MoE (arXiv 2308.12066): who decides for whom, where gradients go, how it is begun."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import chain
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.methods.pre_gated import take_gates
from libmoe.models import build_backbone, moeify
from libmoe.models.backbones import BackboneConfig
from libmoe.testing import check_method

N, D = 4, 12


def build(count: int = 3, method: str = "pre-gated", **given: Any) -> list[MoELayer]:
    given = {"capacity_factor": None, "num_experts": N} | given
    if method == "switch":
        given["jitter"] = 0.0
    made = [
        libmoe.create(method, **given).build_layer(Site(D, 16, seed=0, init_std=0.3, index=i, count=count))
        for i in range(count)
    ]
    for layer in made:
        for weight in layer.router.parameters():
            nn.init.normal_(weight)
    return [layer.double() for layer in made]


def gates(layers: list[MoELayer]) -> list[tuple[bool, bool]]:
    return [(layer.router.gate is not None, layer.router.ahead_gate is not None) for layer in layers]


def run(layers: list[MoELayer], inputs: list[Tensor]) -> tuple[list[Tensor], list[Routing]]:
    """Each layer on an input of its own ``[1, T, D]``, in one forward pass."""
    forward, outputs = ForwardContext(), []
    with libmoe.core.context.use(forward):
        for layer, x in zip(layers, inputs, strict=True):
            outputs.append(layer(x))
    return outputs, [forward.routings[i] for i in range(len(layers))]


def test_the_first_layer_has_two_gates_the_last_none_and_their_number_is_that_of_the_layers() -> None:
    assert gates(build(4)) == [(True, True), (False, True), (False, True), (False, False)]
    assert gates(build(1)) == [(True, False)]
    assert gates(build(4, distance=2)) == [(True, True), (True, True), (False, False), (False, False)]
    assert gates(build(5, starts=[0, 3])) == [
        (True, True), (False, True), (False, False), (True, True), (False, False)
    ]  # fmt: skip
    for given in ({}, {"distance": 2}, {"starts": [0, 2]}):
        assert sum(own + ahead for own, ahead in gates(build(4, **given))) == 4


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_experts_and_weights_are_a_function_of_an_earlier_input_alone(distance: int) -> None:
    layers = build(6, distance=distance)
    inputs = [torch.randn(1, 30, D).double() for _ in layers]
    _, routings = run(layers, inputs)
    for b in range(distance, 6):
        gate = layers[b - distance].router.ahead_gate
        p_TN = gate(inputs[b - distance][0]).softmax(1)
        assert torch.equal(routings[b].plan.expert_A, p_TN.argmax(1))
        torch.testing.assert_close(routings[b].plan.weight_A, p_TN.max(1).values)
    for changed in range(6):
        other = [torch.randn_like(x) if i == changed else x for i, x in enumerate(inputs)]
        _, after = run(layers, other)
        moved = {i for i in range(6) if not torch.equal(after[i].plan.weight_A, routings[i].plan.weight_A)}
        expected = {changed + distance} if changed + distance < 6 else set()
        assert moved == (expected | {changed} if changed < distance else expected)


def test_of_layers_that_see_the_same_the_output_is_that_of_gates_in_their_place() -> None:
    layers, usual = build(3), build(3, "switch")
    gate_ND = [layers[0].router.gate, layers[0].router.ahead_gate, layers[1].router.ahead_gate]
    for theirs, gate in zip(usual, gate_ND, strict=True):
        theirs.router.gate.load_state_dict(gate.state_dict())
    x = torch.randn(1, 40, D).double()
    ours, _ = run(layers, [x] * 3)
    for y, layer, theirs in zip(ours, layers, usual, strict=True):
        theirs.experts.load_state_dict(layer.experts.state_dict())
        with libmoe.core.context.use(ForwardContext()):
            assert torch.equal(y, theirs(x))


def test_a_gate_learns_from_the_layer_it_decides_for_and_not_from_its_own() -> None:
    layers = build(3, balance=0.0)
    (first, second, third), _ = run(layers, [torch.randn(1, 30, D).double() for _ in layers])
    own, ahead, next_ahead = (
        layers[0].router.gate.weight,
        layers[0].router.ahead_gate.weight,
        layers[1].router.ahead_gate.weight,
    )

    def reached(output: Tensor) -> list[bool]:
        found = torch.autograd.grad(
            output.square().sum(), [own, ahead, next_ahead], retain_graph=True, allow_unused=True
        )
        return [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found]

    assert reached(first) == [True, False, False]
    assert reached(second) == [False, True, False]
    assert reached(third) == [False, False, True]


def test_the_balance_loss_of_a_layer_teaches_the_gate_that_decides_for_it() -> None:
    model = moeify(build_backbone(TINY), "pre-gated", options={"num_experts": N, "balance": 1.0}, seed=0).train()
    model(torch.randint(60, (2, 12))).logits.sum().mul(0).backward()
    layers = [layer for _, layer in moe_layers(model)]
    assert all(layer.router.ahead_gate.weight.grad.abs().sum() > 0 for layer in layers[:-1])


TINY = BackboneConfig(
    "llama", hidden_size=32, num_hidden_layers=3, intermediate_size=32, vocab_size=60, num_attention_heads=4
)


def test_decoding_step_by_step_gives_the_same_as_the_whole_text() -> None:
    model = moeify(build_backbone(TINY), "pre-gated", options={"num_experts": N}, seed=0).eval()
    ids = torch.randint(60, (2, 10))
    with torch.no_grad():
        whole, cache, steps = model(ids).logits, None, []
        for t in range(10):
            found = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache, steps = found.past_key_values, [*steps, found.logits]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_encoder_and_decoder_hand_nothing_to_each_other() -> None:
    config = BackboneConfig(
        "t5",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=32,
        vocab_size=60,
        num_attention_heads=4,
    )
    ids = torch.randint(1, 60, (2, 7))
    model = moeify(build_backbone(config), "pre-gated", options={"num_experts": N, "starts": [0, 2]}, seed=0).eval()
    plans: list[Routing] = []
    with options(recorders=[lambda ctx, routing: plans.append(routing)]), torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids[:, :3])
    assert [routing.plan.num_tokens for routing in plans] == [14, 14, 6, 6]
    wrong = moeify(build_backbone(config), "pre-gated", options={"num_experts": N}, seed=0).eval()
    with pytest.raises(ConfigError, match="MoE layer 2 is pre-gated, and no earlier layer decided for its tokens"):
        wrong(input_ids=ids, decoder_input_ids=ids[:, :3])


LARGER = replace(TINY, intermediate_size=64)


def train(model: nn.Module, steps: int, first: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=lr)
    for step in range(first, first + steps):
        torch.manual_seed(step)
        ids = chain(60, 8, 16, seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def held_out(model: nn.Module) -> tuple[float, Tensor]:
    """Loss, and the experts of each token ``[layers, T]``."""
    ids, chosen = chain(60, 64, 16, seed=9999), []
    with torch.no_grad(), options(recorders=[lambda ctx, routing: chosen.append(routing.plan.expert_A)]):
        loss = float(model.eval()(ids, labels=ids).loss)
    return loss, torch.stack(chosen)


def test_a_trained_model_given_pre_gates_and_fine_tuned_does_as_well_as_one_fine_tuned_without() -> None:
    """Many tokens change experts, and it matters which gates decide: any others cost more."""
    given = {"num_experts": 8, "capacity_factor": None}
    switch = moeify(build_backbone(LARGER, seed=0), "switch", options=given, seed=0)
    train(switch, 220, 0, 5e-3)
    model = moeify(build_backbone(LARGER, seed=1), "pre-gated", options=given, seed=1)
    assert take_gates(model, switch) == 2
    (before, chosen), (converted, now) = held_out(switch), held_out(model)
    moved = (chosen != now).double().mean(1).tolist()
    assert moved[0] == 0 and min(moved[1:]) > 0.1
    other = copy.deepcopy(model)
    for _, layer in moe_layers(other):
        if layer.router.ahead_gate is not None:
            nn.init.normal_(layer.router.ahead_gate.weight, std=0.5)
    assert held_out(other)[0] - before > 3 * abs(converted - before)
    train(switch, 40, 1000, 1e-3)
    train(model, 40, 1000, 1e-3)
    assert held_out(model)[0] < 1.02 * held_out(switch)[0]


def test_taking_gates_moves_each_to_the_layer_before_and_copies_the_rest() -> None:
    switch = moeify(build_backbone(TINY, seed=0), "switch", options={"num_experts": N}, seed=0)
    model = moeify(build_backbone(TINY, seed=1), "pre-gated", options={"num_experts": N}, seed=1)
    take_gates(model, switch)
    ours, theirs = ([layer for _, layer in moe_layers(m)] for m in (model, switch))
    assert torch.equal(ours[0].router.gate.weight, theirs[0].router.gate.weight)
    assert torch.equal(ours[0].router.ahead_gate.weight, theirs[1].router.gate.weight)
    assert torch.equal(ours[1].router.ahead_gate.weight, theirs[2].router.gate.weight)
    assert torch.equal(ours[2].experts.w_in, theirs[2].experts.w_in)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp is not pre-gated"):
        take_gates(switch, model)
    other = moeify(build_backbone(TINY), "switch", options={"num_experts": N}, where=[0, 1], seed=0)
    with pytest.raises(ConfigError, match="the trained model has no gate at"):
        take_gates(model, other)


@pytest.mark.parametrize("given", [{"top_k": 2, "renormalise": True}, {"distance": 2}])
def test_more_experts_and_a_longer_look_ahead_keep_the_contract(given: dict[str, Any]) -> None:
    check_method("pre-gated", given)


def test_a_large_initial_router_leaves_layers_without_gates_alone() -> None:
    usual, large = build_scaled(1.0), build_scaled(4.0)
    for ours, theirs in zip(usual, large, strict=True):
        for name, before in ours.router.named_parameters():
            torch.testing.assert_close(theirs.router.get_parameter(name), 4 * before)


def build_scaled(scale: float) -> list[MoELayer]:
    method = libmoe.create("pre-gated", num_experts=N, router_init_scale=scale)
    return [method.build_layer(Site(D, 16, seed=0, index=i, count=3)) for i in range(3)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"distance": 0}, "distance=0 must be at least 1"),
        ({"starts": [1]}, r"starts=\[1\] must name layer 0"),
        ({"starts": [0, -1]}, "no negative one"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("pre-gated", **given)
