"""Patch-level MoE (arXiv 2306.04073): expert choice within a sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.layers import MoELayer

N, D, B, PATCHES, TAKEN = 3, 10, 4, 12, 5


def build(**options: Any) -> MoELayer:
    given = {"num_experts": N, "tokens_per_expert": TAKEN, "seq_len": PATCHES} | options
    return libmoe.create("pmoe", given).build_layer(Site(D, 16, seed=0, init_std=0.4)).double()


def images(count: int = B) -> Tensor:
    return torch.randn(count, PATCHES, D, dtype=torch.float64)


def plan_of(layer: MoELayer, x: Tensor) -> SparsePlan:
    context = ForwardContext()
    with use(context):
        layer(x)
    return context.routings[0].plan


@pytest.mark.parametrize("gates", ["picked", "score", "one"])
def test_every_expert_takes_its_best_patches_of_every_image(gates: Any) -> None:
    layer, x = build(gates=gates), images()
    plan = plan_of(layer, x)
    taken = torch.zeros(B, PATCHES, N, dtype=torch.long)
    taken.view(-1, N).index_put_((plan.token_A, plan.expert_A), torch.tensor(1), accumulate=True)
    assert (taken.sum(1) == TAKEN).all() and taken.max() == 1
    scores = x @ layer.router.gate.weight.T
    assert torch.equal(taken, torch.zeros_like(taken).scatter(1, scores.topk(TAKEN, dim=1).indices, 1))
    assert (taken.sum(2) == 0).any(), "some patch is left to nobody"


def test_permuting_patches_permutes_the_picks_and_leaves_the_average_as_it_was() -> None:
    layer, x, order = build(), images(), torch.randperm(PATCHES)
    assert torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-12)
    assert torch.allclose(layer(x[:, order]).mean(1), layer(x).mean(1), atol=1e-12)


def test_an_image_is_routed_alike_alone_and_in_a_batch() -> None:
    layer, x = build(), images()
    assert torch.allclose(layer(x[1:2])[0], layer(x)[1], atol=1e-12)
    other = torch.cat([x[:2], 5 * images(2)])
    assert torch.equal(layer(other)[:2], layer(x)[:2])


def test_one_expert_that_takes_all_patches_is_the_dense_network() -> None:
    layer, x = build(num_experts=1, top_k=1, tokens_per_expert=PATCHES, gates="one"), images()
    assert torch.allclose(layer(x), layer.experts.materialise(0)(x), atol=1e-12)


def test_gates_of_joint_training_sum_to_one_over_the_patches_taken() -> None:
    x = images()
    for gates, total in (("picked", 1.0), ("score", None)):
        layer = build(gates=gates)
        plan = plan_of(layer, x)
        scores = x @ layer.router.gate.weight.T
        best = scores.topk(TAKEN, dim=1)
        mass = torch.zeros(B, N, dtype=torch.float64).index_put(
            (plan.token_A // PATCHES, plan.expert_A), plan.weight_A, accumulate=True
        )
        if total:
            assert torch.allclose(mass, torch.ones_like(mass))
            expected = best.values.softmax(1)
        else:
            expected = scores.softmax(1).gather(1, best.indices)
            assert mass.max() < 0.9
        dense = torch.zeros(B, PATCHES, N, dtype=torch.float64).scatter(1, best.indices, expected)
        assert torch.allclose(plan.weight_A, dense.view(-1, N)[plan.token_A, plan.expert_A])
        plan.weight_A.square().sum().backward()
        assert layer.router.gate.weight.grad.abs().max() > 0


def test_gates_on_inputs_equal_gates_on_outputs_for_relu_without_bias() -> None:
    x, outputs = images(), []
    for scale_input in (False, True):
        options = {"num_experts": N, "tokens_per_expert": TAKEN, "seq_len": PATCHES, "scale_input": scale_input}
        place = Site(D, 16, activation="relu", gated=False, seed=0, init_std=0.4)
        outputs.append(libmoe.create("pmoe", options).build_layer(place).double()(x))
    assert torch.allclose(*outputs, atol=1e-12) and outputs[0].abs().max() > 0


def test_padding_is_never_taken_and_short_images_give_all_they_have() -> None:
    layer, mask = build(), torch.ones(2, PATCHES, dtype=torch.long)
    mask[1, 3:] = 0
    ctx = ForwardContext({"attention_mask": mask}).layer(0, (2, PATCHES), False)
    plan = layer.router(images(2).flatten(0, 1), ctx).plan
    assert plan.load_N().tolist() == [TAKEN + 3.0] * N and int(plan.token_A.max()) < PATCHES + 3
    mass = torch.zeros(N, dtype=torch.float64).index_add(0, plan.expert_A, plan.weight_A)
    assert torch.allclose(mass, torch.full((N,), 2.0, dtype=torch.float64))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens_per_expert=13"):
        build(tokens_per_expert=13)
    with pytest.raises(ConfigError, match="'picked'"):
        build(gates="pickd")
