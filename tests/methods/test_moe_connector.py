"""The MoE connectors of MoCHA (arXiv 2507.22805), by themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, FirstChoiceBalanceLoss
from libmoe.models.upcycle import copy_into_experts
from libmoe.testing import check_loss

IMAGES, PATCHES, C, D, N = 3, 10, 12, 20, 4


def build(index: int = 0, **changes: object) -> MoELayer:
    """Between an encoder of width C and a language model of width D."""
    site = Site(C, D, activation="gelu", gated=False, bias=True, out_dim=D, index=index, seed=index)
    return libmoe.create("moe-connector", **changes).build_layer(site)


def sharp(layer: MoELayer) -> MoELayer:
    """With a gate that has made up its mind."""
    with torch.no_grad():
        layer.router.gate.weight.normal_()
    return layer


def context(layer: MoELayer) -> LayerContext:
    return ForwardContext().layer(layer.index, (IMAGES, PATCHES), training=True)


def routed(layer: MoELayer, x: Tensor) -> tuple[Routing, LayerContext]:
    ctx = context(layer)
    return layer.route(x.flatten(0, 1), ctx), ctx


def balance_by_hand(layer: MoELayer, x: Tensor) -> Tensor:
    """``N^2 mean_e(P_e f_e)`` of each image, f over first choices, then the mean over images."""
    p_IPN = (x @ layer.router.gate.weight.T).softmax(-1)
    first_IPN = nn.functional.one_hot(p_IPN.argmax(-1), N).to(p_IPN)
    return (N**2 * (p_IPN.mean(1) * first_IPN.mean(1)).mean(-1)).mean()


def test_equal_experts_are_the_single_connector() -> None:
    layer, x = sharp(build()), torch.randn(IMAGES, PATCHES, C)
    dense = nn.Sequential(nn.Linear(C, D), nn.GELU(), nn.Linear(D, D))
    ffn = FFN(C, D, "gelu", gated=False, bias=True, out_dim=D)
    ffn.load_state_dict(dict(zip(("w_in", "b_in", "w_out", "b_out"), dense.state_dict().values(), strict=True)))
    assert copy_into_experts(layer, ffn, "connector") == N
    assert (layer(x) - dense(x)).abs().max() < 1e-6


def test_all_experts_at_once_are_a_dense_mixture() -> None:
    layer, x = sharp(build(top_k=N)), torch.randn(IMAGES, PATCHES, C)
    p_IPN = (x @ layer.router.gate.weight.T).softmax(-1)
    outputs = torch.stack([layer.experts.materialise(e)(x) for e in range(N)], -1)
    torch.testing.assert_close(layer(x), (outputs * p_IPN.unsqueeze(-2)).sum(-1), rtol=1e-5, atol=1e-7)


def test_two_experts_of_four_are_weighed_by_renormalised_probabilities() -> None:
    layer, x = sharp(build()), torch.randn(IMAGES, PATCHES, C)
    routing, _ = routed(layer, x)
    best = (x.flatten(0, 1) @ layer.router.gate.weight.T).softmax(-1).topk(2)
    torch.testing.assert_close(routing.plan.weight_A.view(-1, 2), best.values / best.values.sum(-1, keepdim=True))
    assert torch.equal(routing.plan.expert_A.view(-1, 2), best.indices)


def test_experts_are_drawn_apart_like_the_connectors_linears_and_as_wide() -> None:
    experts = build(index=1).experts
    assert experts.w_in.shape == (N, D, C) and experts.w_out.shape == (N, D, D)
    site = Site(256, 256, activation="gelu", gated=False, bias=True, out_dim=128, init_std=0.05, seed=0)
    experts = libmoe.create("moe-connector").build_layer(site).experts
    assert all(weight.std().item() == pytest.approx(0.05, rel=0.02) for weight in (experts.w_in, experts.w_out))
    assert not experts.b_in.any() and not experts.b_out.any()
    correlation = torch.corrcoef(experts.w_in.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.02, "experts are copies"


def test_each_image_is_balanced_by_its_patches_first_choices() -> None:
    layer, x = sharp(build()), torch.randn(IMAGES, PATCHES, C)
    (routing, ctx), (loss, _) = routed(layer, x), layer.losses
    numerator, tokens = loss.compute(routing, ctx)
    assert isinstance(loss, FirstChoiceBalanceLoss) and loss.coefficient == 0.1
    torch.testing.assert_close(numerator / tokens, balance_by_hand(layer, x))
    every_choice = BalanceLoss(0.1).compute(routing, ctx)[0] / tokens
    whole_batch = FirstChoiceBalanceLoss(0.1, "micro_batch").compute(routing, ctx)[0] / tokens
    assert all((numerator / tokens - other).abs() > 1e-3 for other in (every_choice, whole_batch))


def test_uniform_routing_in_four_connectors_adds_up_to_4_and_z_to_4_ln_4_squared() -> None:
    balance = z = 0.0
    for number in range(4):
        layer = build(index=number)
        nn.init.zeros_(layer.router.gate.weight)
        routing, ctx = routed(layer, torch.randn(IMAGES, PATCHES, C))
        parts = [numerator / tokens for numerator, tokens in (loss.compute(routing, ctx) for loss in layer.losses)]
        balance, z = balance + parts[0].item(), z + parts[1].item()
    assert balance == pytest.approx(4.0, abs=1e-6)
    assert z == pytest.approx(4 * math.log(4) ** 2, rel=1e-6)


def test_training_adds_a_tenth_of_the_balance_and_a_hundredth_of_the_z_loss() -> None:
    layer, x = sharp(build()).train(), torch.randn(IMAGES, PATCHES, C)
    (0.0 * layer(x).sum()).backward()
    found, layer.router.gate.weight.grad = layer.router.gate.weight.grad, None
    z = (x @ layer.router.gate.weight.T).logsumexp(-1).square().mean()
    (0.1 * balance_by_hand(layer, x) + 0.01 * z).backward()
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, layer.router.gate.weight.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_the_balance_of_first_choices_keeps_the_contract_of_losses(scope: str) -> None:
    assert "ignores padding" in check_loss(FirstChoiceBalanceLoss(0.1, scope), at_balance=1.0)


def test_what_first_choices_cannot_do_is_one_line() -> None:
    with pytest.raises(ConfigError, match="scope 'global_batch' is not counted by this loss; use 'sequence'"):
        libmoe.create("moe-connector", balance_scope="global_batch").build_layer(Site(C, D))
    layer = libmoe.create("soft-moe", seq_len=PATCHES).build_layer(Site(C, D))
    with options(), pytest.raises(ConfigError, match="first_choice_balance loss needs a sparse plan"):
        FirstChoiceBalanceLoss(0.1).compute(*routed(layer, torch.randn(IMAGES, PATCHES, C)))
