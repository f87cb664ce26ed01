"""Upcycling into thin experts (arXiv 2410.07524): slices, tied router rows, scaled weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
)

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import FFN, FFNExperts
from libmoe.layers import MoELayer, moe_layers
from libmoe.models import export, load, save
from libmoe.models.upcycle import copy_into_experts

D, H, T = 8, 32, 200


def site(activation: str = "relu2", gated: bool = False, bias: bool = False) -> Site:
    return Site(D, H, activation, gated, bias, init_std=0.3, seed=0)


def dense(place: Site) -> FFN:
    torch.manual_seed(3)
    ffn = FFN(place.dim, place.hidden, place.activation, place.gated, place.bias, 0.3).double()
    for bias in (ffn.b_in, ffn.b_out):
        if bias is not None:
            torch.nn.init.normal_(bias, std=0.3)
    return ffn


def upcycled(place: Site, rows: float | None = None, **options: Any) -> tuple[MoELayer, FFN]:
    """A layer made from a dense FFN; ``rows`` is the size of its router's rows."""
    layer = libmoe.create("granular-upcycling", **options).build_layer(place).double().eval()
    ffn = dense(place)
    copy_into_experts(layer, ffn, "mlp")
    if rows is not None:
        weight = layer.router.gate.weight.data
        weight.mul_(rows / weight.std())
    return layer, ffn


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def E8G8T8(**more: Any) -> dict[str, Any]:
    return {"num_experts": 64, "granularity": 8, "top_k": 8} | more


@pytest.mark.parametrize(
    ("activation", "gated", "bias", "scale_on"),
    [("relu2", False, False, "all"), ("relu", False, False, "all"), ("relu", True, False, "all"),
     ("relu2", True, False, "all"), ("silu", True, True, "out"), ("gelu", False, True, "out")],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1e-6, 1.0])
def test_with_a_softmax_over_the_chosen_one_whole_copy_computes_the_dense_ffn(
    activation: str, gated: bool, bias: bool, scale_on: str, rows: float
) -> None:
    layer, ffn = upcycled(site(activation, gated, bias), rows, **E8G8T8(order="topk-softmax", scale_on=scale_on))
    torch.testing.assert_close(layer(tokens()[None])[0], ffn(tokens()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("gated", "activation"), [(True, "silu"), (False, "gelu")])
def test_activations_that_are_not_homogeneous_are_near_it(gated: bool, activation: str) -> None:
    layer, ffn = upcycled(site(activation, gated), 1.0, **E8G8T8(order="topk-softmax"))
    error = (layer(tokens()[None])[0] - ffn(tokens())).norm() / ffn(tokens()).norm()
    assert 1e-3 < error < 0.8


@pytest.mark.parametrize(("granularity", "top_k"), [(8, 8), (8, 16), (8, 24), (4, 4), (1, 2)])
def test_with_a_softmax_over_all_and_a_router_that_is_nearly_undecided_too(granularity: int, top_k: int) -> None:
    options = {"num_experts": 8 * granularity, "granularity": granularity, "top_k": top_k}
    layer, ffn = upcycled(site(), 1e-6, **options)
    torch.testing.assert_close(layer(tokens()[None])[0], ffn(tokens()), rtol=1e-4, atol=1e-4)


def test_a_router_that_is_decided_gives_more_and_unscaled_weights_a_64th_of_it() -> None:
    layer, ffn = upcycled(site(), 1.0, **E8G8T8())
    plain, _ = upcycled(site(), 1.0, **E8G8T8(weight_scaling=False))
    ratio_T = layer(tokens()[None])[0].norm(dim=1) / ffn(tokens()).norm(dim=1)
    assert ratio_T.mean() >= 1 and (ratio_T > 0.999).all()
    torch.testing.assert_close(plain(tokens()[None]) * 64, layer(tokens()[None]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("top_k", [8, 16])
def test_tied_rows_give_every_token_whole_copies_and_independent_ones_almost_never(top_k: int) -> None:
    whole = {}
    for init in ("virtual-group", "independent"):
        layer, ffn = upcycled(site(), 1.0, **E8G8T8(top_k=top_k, router_init=init, order="topk-softmax"))
        plan = layer.router.route(tokens(), ForwardContext().layer(0, (1, T), False)).plan
        slices_TK = plan.expert_A.view(T, top_k) % 8
        count_TG = torch.nn.functional.one_hot(slices_TK, 8).sum(1)
        whole[init] = float((count_TG == top_k // 8).all(1).double().mean())
        error = (layer(tokens()[None])[0] - ffn(tokens())).norm() / ffn(tokens()).norm()
        assert (error < 1e-9) if init == "virtual-group" else (error > 0.3), (init, error)
    assert whole["virtual-group"] == 1.0 and whole["independent"] < 0.05


def test_experts_are_slices_of_each_copy_in_turn_and_rows_those_of_the_first_experts() -> None:
    place = site("silu", gated=True, bias=True)
    layer, ffn = upcycled(place, num_experts=8, granularity=4, top_k=4, weight_scaling=False)
    width = H // 4
    for expert in range(8):
        rows = slice(expert % 4 * width, (expert % 4 + 1) * width)
        gate, up = layer.experts.w_in[expert].chunk(2)
        assert torch.equal(gate, ffn.w_in[:H][rows]) and torch.equal(up, ffn.w_in[H:][rows])
        assert torch.equal(layer.experts.w_out[expert], ffn.w_out[:, rows])
        assert torch.equal(layer.experts.b_in[expert], torch.cat([ffn.b_in[:H][rows], ffn.b_in[H:][rows]]))
        assert torch.equal(layer.experts.b_out[expert], ffn.b_out)
    x_TD = tokens()
    parts = sum(layer.experts.materialise(e)(x_TD) for e in range(4)) - 3 * ffn.b_out
    torch.testing.assert_close(parts, ffn(x_TD))
    weight = layer.router.gate.weight
    independent = libmoe.create(
        "granular-upcycling", num_experts=8, granularity=4, top_k=4, router_init="independent"
    ).build_layer(place)
    rows_ED = independent.router.gate.weight[:2].double()
    assert torch.equal(weight, rows_ED[[0, 0, 0, 0, 1, 1, 1, 1]])


def test_tied_rows_part_in_the_first_step() -> None:
    layer, _ = upcycled(site(), 0.3, **E8G8T8(balance=0.0))
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    (layer(tokens()[None]) - tokens()).square().sum().backward()
    optimizer.step()
    rows_EGD = layer.router.gate.weight.view(8, 8, D)
    gaps = (rows_EGD[:, 1:] - rows_EGD[:, :1]).norm(dim=-1)
    assert (gaps > 0).all()


@pytest.mark.parametrize(
    ("options", "activation", "gated", "expected"),
    [
        (E8G8T8(), "relu2", False, 4.0),
        (E8G8T8(), "silu", True, 4.0),
        (E8G8T8(), "gelu", False, 8.0),
        ({"num_experts": 8, "granularity": 1, "top_k": 1}, "relu2", False, 2.0),
        ({"num_experts": 8, "granularity": 1, "top_k": 2}, "silu", True, 4 ** (1 / 3)),
        (E8G8T8(order="topk-softmax"), "relu2", False, 2.0),
        (E8G8T8(weight_scaling=False), "relu2", False, 1.0),
    ],
)
def test_the_table_of_scales(options: dict[str, Any], activation: str, gated: bool, expected: float) -> None:
    place = site(activation, gated)
    assert libmoe.create("granular-upcycling", **options).scales(place) == pytest.approx((expected, expected))
    layer, ffn = upcycled(place, **options)
    width = layer.experts.hidden
    torch.testing.assert_close(layer.experts.w_out[0], expected * ffn.w_out[:, :width])


@pytest.mark.parametrize("top_k", [8, 16])
def test_parameters_are_those_of_E_dense_ffns_and_active_ones_T_over_G(top_k: int) -> None:
    layer, ffn = upcycled(site(), **E8G8T8(top_k=top_k))
    size = sum(p.numel() for p in ffn.parameters())
    assert sum(p.numel() for p in layer.experts.parameters()) == 8 * size
    flops = sum(a * b for a, b in zip(layer.router.expected_load(), layer.experts.flops_per_row(), strict=True))
    assert flops == pytest.approx(top_k / 8 * 2 * size)


def test_a_model_is_upcycled_without_a_change_in_its_output_and_comes_back_from_disk(tmp_path: Any) -> None:
    config = NemotronConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    model, ids = NemotronForCausalLM(config).eval(), torch.randint(40, (2, 9))
    before = model(input_ids=ids).logits
    options = {"num_experts": 16, "granularity": 4, "top_k": 4, "order": "topk-softmax"}
    libmoe.moeify(model, "granular-upcycling", options=options, init="copy", seed=0)
    assert [layer.experts.hidden for _, layer in moe_layers(model)] == [8, 8]
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
    assert model.libmoe.receipt.max_abs_difference < 1e-5
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_upcycled_model_is_exported_in_a_standard_architecture(tmp_path: Any) -> None:
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(40, (2, 9))
    options = {"num_experts": 8, "granularity": 2, "top_k": 2, "order": "topk-softmax"}
    libmoe.moeify(model, "granular-upcycling", options=options, init="copy", seed=0)
    with torch.no_grad():  # tied rows of two machines' rounding could choose differently
        for _, layer in moe_layers(model):
            layer.router.gate.weight.normal_()
    export(model, tmp_path / "standard", "mixtral")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "standard").eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="granularity=8 must divide num_experts=12"):
        libmoe.create("granular-upcycling", num_experts=12, top_k=4)
    with pytest.raises(ConfigError, match="granularity=8 must divide the dense FFN's width, 36"):
        libmoe.create("granular-upcycling").build_layer(Site(D, 36))
    with pytest.raises(ConfigError, match="mlp of width 32 cannot be cut into 8 slices as wide as the experts, 5"):
        upcycled(site(), **E8G8T8(expert_hidden=5))
    layer = libmoe.create("granular-upcycling").build_layer(site("silu", gated=True))
    with pytest.raises(ConfigError, match="mlp is an FFN of another form"):
        copy_into_experts(layer, dense(site()), "mlp")
    assert isinstance(layer.experts, FFNExperts)
