"""ViMoE (arXiv 2410.15732): one choice for an image, a shared expert, and what classes have to do with experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe
from digit_images import CLASSES, PATCHES, DigitNet, digits, fit, predict, vit
from libmoe.analysis.metrics.capacity import routing_degree
from libmoe.analysis.metrics.information import mutual_information, profiles, shuffled
from libmoe.core.balance import entropy
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import MoELayer, moe_layers
from libmoe.models.accounting import account
from libmoe.models.upcycle import copy_into_experts
from libmoe.testing import check_method

N, D = 4, 16


def build(training: bool = True, **given: Any) -> MoELayer:
    method = libmoe.create("vimoe", {"num_experts": N, **given})
    layer = method.build_layer(Site(D, 24, activation="gelu", gated=False, bias=True, seed=0, init_std=0.2))
    gate = layer.router.gate
    nn.init.normal_(getattr(gate, "gate", gate).weight)
    return layer.double().train(training)


def route(layer: MoELayer, x_BLD: Tensor) -> Routing:
    ctx = ForwardContext().layer(0, tuple(x_BLD.shape[:2]), layer.training)
    return layer.route(x_BLD.flatten(0, 1), ctx)


# -- one choice for an image ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_all_tokens_of_an_image_have_the_same_experts_and_patches_may_change_places(pool: str, top_k: int) -> None:
    layer, x_BLD = build(pool=pool, top_k=top_k), torch.randn(12, 7, D).double()
    routing = route(layer, x_BLD)
    expert_BLK = routing.plan.expert_A.view(12, 7, top_k)
    assert (expert_BLK == expert_BLK[:, :1]).all() and len(expert_BLK[..., 0].unique()) > 1
    for b in range(12):
        r_D = x_BLD[b, 0] if pool == "first" else x_BLD[b].mean(0)
        p_N = (layer.router.gate.gate.weight @ r_D).softmax(0)
        assert expert_BLK[b, 0].tolist() == p_N.topk(top_k).indices.tolist()
        torch.testing.assert_close(routing.plan.weight_A.view(12, 7, top_k)[b, 3], p_N.topk(top_k).values)
    shuffled_BLD = torch.cat([x_BLD[:, :1], x_BLD[:, 1:].flip(1)], dim=1)  # [CLS] stays in front
    assert torch.equal(route(layer, shuffled_BLD).plan.expert_A, routing.plan.expert_A)


def test_by_token_each_token_chooses_for_itself() -> None:
    layer, x_BLD = build(granularity="token"), torch.randn(3, 7, D).double()
    plan = route(layer, x_BLD).plan
    assert torch.equal(plan.expert_A, (x_BLD.flatten(0, 1) @ layer.router.gate.weight.T).argmax(1))


def test_a_vision_transformer_has_it_in_its_last_blocks_and_chooses_once_for_an_image() -> None:
    model = libmoe.moeify(vit(layers=3), "vimoe", options={"num_experts": N}, where="last:2", seed=0)
    assert [path for path, _ in moe_layers(model)] == [f"vit.layers.{i}.mlp" for i in (1, 2)]
    pixels, last = digits("test")[0][:40], list(moe_layers(model))[-1][1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(pixel_values=pixels)
        cls_BD, weight_ND = seen[0][:, 0], last.router.gate.gate.weight
        mean_D = F.normalize(cls_BD.mean(0), dim=0)  # untrained, all images look alike but for a little
        weight_ND.sub_((weight_ND @ mean_D)[:, None] * mean_D)
        with libmoe.options(recorders=[lambda ctx, routing: seen.append(routing.plan.expert_A)]):
            model(pixel_values=pixels)
    expert_BL = seen[-1].view(40, 1 + PATCHES)
    assert torch.equal(expert_BL, (cls_BD @ weight_ND.T).argmax(1, keepdim=True).expand(-1, 1 + PATCHES))
    assert len(expert_BL.unique()) > 1


# -- the shared expert ------------------------------------------------------------------------------------


def copied(**given: Any) -> tuple[MoELayer, FFN]:
    layer = build(expert_hidden=24, **given)
    ffn = FFN(D, 24, "gelu", gated=False, bias=True, init_std=0.3).double()
    assert copy_into_experts(layer, ffn, "here") == N + ("shared" not in given)
    return layer, ffn


def test_a_converted_layer_begins_with_the_shared_copy_and_p_times_another() -> None:
    layer, ffn = copied()
    x_BLD = torch.randn(3, 5, D).double()
    routing = route(layer, x_BLD)
    found_TD = layer.execute(x_BLD.flatten(0, 1), routing)
    p_T1 = routing.plan.weight_A.unsqueeze(1)
    torch.testing.assert_close(found_TD, (1 + p_T1) * ffn(x_BLD.flatten(0, 1)))


@pytest.mark.parametrize("top_k", [1, 2])
def test_half_of_each_computes_exactly_what_the_dense_layer_did_and_still_trains_the_router(top_k: int) -> None:
    layer, ffn = copied(scale="half", top_k=top_k)
    x_BLD = torch.randn(3, 5, D).double()
    found_TD = layer.execute(x_BLD.flatten(0, 1), route(layer, x_BLD))
    torch.testing.assert_close(found_TD, ffn(x_BLD.flatten(0, 1)), rtol=1e-5, atol=1e-5)
    found_TD.square().sum().backward()
    assert layer.router.gate.gate.weight.grad.abs().sum() > 0
    check_method("vimoe", {"scale": "half", "top_k": top_k})


def test_a_converted_vision_transformer_reproduces_the_dense_one() -> None:
    dense = vit(layers=3, hidden=32)
    pixels = digits("test")[0][:20]
    with torch.no_grad():
        expected = dense(pixels).logits
        # The dense width for each: the routed and the shared expert together cost twice the dense layer.
        model = libmoe.moeify(
            dense, "vimoe", options={"num_experts": N, "scale": "half"}, where="last:2", init="copy", seed=0
        )
        torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-5, atol=1e-5)
    assert model.libmoe.receipt.max_abs_difference < 1e-4
    assert {layer.experts.hidden for _, layer in moe_layers(model)} == {32}


def test_without_a_shared_expert_there_is_none() -> None:
    layer, _ = copied(shared=False)
    assert layer.shared is None
    pair = [libmoe.moeify(vit(), "vimoe", options={"shared": shared}, seed=0) for shared in (True, False)]
    active = [account(model).active_params for model in pair]
    assert abs(active[0] - active[1]) < 0.01 * active[0], "active parameters are the dense layer's either way"


# -- degrees, classes and experts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "k", "layers", "degree"), [(8, 1, 2, 64), (2, 1, 5, 32), (2, 1, 6, 64), (4, 1, 3, 64), (4, 2, 2, 36)]
)
def test_the_routing_degree_is_the_number_of_combinations_over_layers(
    experts: int, k: int, layers: int, degree: int
) -> None:
    model = libmoe.moeify(vit(layers=6), "vimoe", options={"num_experts": experts, "top_k": k}, where=f"last:{layers}")
    found = routing_degree((layer.router.num_experts, layer.router.top_k) for _, layer in moe_layers(model))
    assert found == degree


def heat(routing: Routing, classes: Tensor) -> np.ndarray:
    """Images of each class on each expert."""
    expert_I = routing.plan.expert_A.view(len(classes), -1)[:, 0]
    count = np.zeros((CLASSES, N))
    np.add.at(count, (classes.numpy(), expert_I.numpy()), 1)
    return count


def test_what_trained_routers_see_of_the_class_is_gone_when_classes_are_shuffled() -> None:
    model = DigitNet("vimoe", dim=32, hidden=4, num_experts=N, pool="mean")
    fit(model, 200)
    count = heat(predict(model)[1][0], digits("test")[1])
    np.testing.assert_allclose(profiles(count).sum(1), 1)
    told = mutual_information(count) / entropy(count.sum(1))
    control = shuffled(count, 50) / entropy(count.sum(1))
    assert control.mean() < 0.05
    assert told > 3 * control.max(), f"{told:.3f} of the class is told, {control.max():.3f} by chance"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"granularity": "pixel"}, "choose one of 'image', 'token'"),
        ({"pool": "max"}, "choose one of 'first', 'mean'"),
        ({"scale": "hlaf"}, "did you mean 'half'"),
        ({"scale": "half", "shared": False}, "scale='half' needs the shared expert"),
        ({"balance_scope": "sequence"}, "balance_scope='sequence'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("vimoe", given).build_layer(Site(D, 24))
