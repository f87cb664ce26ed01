"""DeepSpeed-MoE (arXiv 2201.05596): an MLP for every token, an expert that corrects it, and a pyramid of layers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFNExperts
from libmoe.layers import LearnedMix, MoELayer, moe_layers
from libmoe.models import export, load, save
from libmoe.models.receipt import count_parameters

N, D, T = 4, 6, 40


def build(training: bool = True, method: str = "residual-moe", **options: Any) -> MoELayer:
    options = {"num_experts": N, "balance": 0.0} | options
    layer = libmoe.create(method, **options).build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    return layer


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def ctx(training: bool = True, count: int = T) -> Any:
    return ForwardContext().layer(0, (1, count), training)


def test_without_its_expert_a_layer_is_its_share_of_the_mlp_and_shares_sum_to_1() -> None:
    layer = build()
    share_T2 = layer.mix.shares(tokens())
    torch.testing.assert_close(share_T2.sum(1), torch.ones(T, dtype=torch.double))
    expected = (tokens() @ layer.mix.weight.T + layer.mix.bias).softmax(1)
    torch.testing.assert_close(share_T2, expected)
    torch.nn.init.zeros_(layer.experts.w_out)
    torch.testing.assert_close(layer(tokens()[None])[0], share_T2[:, 1:] * layer.shared(tokens()))


def test_a_dropped_token_gets_its_mlp_and_the_mlp_learns_from_every_token() -> None:
    layer = build()
    torch.nn.init.zeros_(layer.router.gate.weight)  # all tokens to expert 0, ten places
    routing = layer.route(tokens(), ctx())
    kept_T = routing.plan.kept_A
    assert int(kept_T.sum()) == T // N
    y_TD = layer.execute(tokens(), routing)
    share_T2, mlp_TD = layer.mix.shares(tokens()), layer.shared(tokens())
    torch.testing.assert_close(y_TD[~kept_T], (share_T2[:, 1:] * mlp_TD)[~kept_T])
    assert ((y_TD - share_T2[:, 1:] * mlp_TD)[kept_T].abs().amax(1) > 1e-6).all()
    for token in (int(kept_T.nonzero()[0]), int((~kept_T).nonzero()[0])):
        (grad,) = torch.autograd.grad(y_TD[token].sum(), layer.shared.ffn.w_out, retain_graph=True)
        assert grad.abs().max() > 1e-4


@pytest.mark.parametrize("coefficient", ["learned", "none"])
def test_equals_a_plain_reference_with_all_gradients_where_capacity_binds(coefficient: str) -> None:
    layer = build(coefficient=coefficient, queue="position", capacity_factor=0.6)
    x_TD = tokens().requires_grad_()
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T, 1)
    taken, rows = [0] * N, []
    for token, e in enumerate(p_TN.argmax(1).tolist()):
        taken[e] += 1
        y_D = p_TN[token, e] * layer.experts.materialise(e)(x_TD[token])
        rows.append(y_D if taken[e] <= math.ceil(0.6 * T / N) else 0 * y_D)
    routed_TD, mlp_TD = torch.stack(rows), layer.shared(x_TD)
    expected = routed_TD + mlp_TD
    weights = [x_TD, layer.router.gate.weight, layer.shared.ffn.w_in]
    if coefficient == "learned":
        c_T2 = (x_TD @ layer.mix.weight.T + layer.mix.bias).softmax(1)
        expected = c_T2[:, :1] * routed_TD + c_T2[:, 1:] * mlp_TD
        weights += [layer.mix.weight, layer.mix.bias]
    else:
        assert layer.mix is None
    assert max(taken) > math.ceil(0.6 * T / N)
    y_TD = layer(x_TD[None])[0]
    torch.testing.assert_close(y_TD, expected)
    found, wanted = (torch.autograd.grad(y.square().sum(), weights) for y in (y_TD, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_parts_begin_with_about_half_each() -> None:
    torch.manual_seed(0)
    share_T2 = LearnedMix(400).shares(torch.randn(200, 400))
    assert share_T2.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05) and share_T2.std() < 0.2


def test_two_ffns_of_half_the_dense_width_are_active() -> None:
    layer = build()
    assert layer.experts.hidden == 6 == layer.shared.ffn.w_out.shape[1]


def test_a_mix_without_a_shared_part_is_refused() -> None:
    layer = build()
    with pytest.raises(ConfigError, match="LearnedMix mixes experts with a shared part, and there is none"):
        MoELayer(layer.router, layer.experts, mix=LearnedMix(D))


def test_with_rsample_experts_are_drawn_from_the_gate_and_weighed_by_their_probability() -> None:
    layer = build(noise="rsample", capacity_factor=None)
    x_TD = tokens()[:1].expand(20_000, D)
    plan = layer.router.route(x_TD, ctx(count=20_000)).plan
    p_N = torch.softmax(x_TD[0] @ layer.router.gate.weight.T, 0).detach()
    count_N = torch.bincount(plan.expert_A, minlength=N)
    assert chisquare(count_N.numpy(), (p_N * 20_000).numpy()).pvalue > 1e-4
    torch.testing.assert_close(plan.weight_A.detach(), p_N[plan.expert_A])
    assert torch.equal(layer.eval().router.route(x_TD, ctx(False, 20_000)).plan.expert_A, p_N.argmax().expand(20_000))


def test_a_table_of_places_dispatches_as_one_hot_matrices_do_with_all_gradients() -> None:
    """GShard's einsum over tokens, experts and places, against rows that are gathered."""
    experts = FFNExperts(N, D, 8, init_std=0.5).double()
    expert_T = torch.randint(N, (T,))
    one_TN = torch.nn.functional.one_hot(expert_T, N)
    place_T = (one_TN.cumsum(0) * one_TN).sum(1) - 1
    slots = 7
    kept_T = place_T < slots
    assert not kept_T.all()
    leaves = [tokens().requires_grad_(), torch.rand(T).double().requires_grad_()]
    x_TD, gate_T = leaves
    where_TNC = one_TN.unsqueeze(2) * torch.nn.functional.one_hot(place_T.clamp_max(slots), slots + 1)[:, None, :slots]
    buffer_NCD = torch.einsum("tnc,td->ncd", where_TNC.double(), x_TD)
    out_NCD = torch.stack([experts.materialise(e)(buffer_NCD[e]) for e in range(N)])
    expected = torch.einsum("tnc,ncd->td", gate_T[:, None, None] * where_TNC, out_NCD)
    found = experts.execute(x_TD, SparsePlan.from_topk(expert_T[:, None], gate_T[:, None], N, kept_T[:, None]))
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


# -- the pyramid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "count", "expected"),
    [
        ({}, 12, [4] * 10 + [8] * 2),
        ({"deep_experts": 6}, 12, [4] * 10 + [6] * 2),
        ({"deep_layers": 3, "deep_experts": 5}, 4, [4, 5, 5, 5]),
        ({}, 2, [4, 8]),
        ({"deep_layers": 0}, 3, [4, 4, 4]),
    ],
)
def test_the_last_layers_have_more_experts(options: dict[str, Any], count: int, expected: list[int]) -> None:
    method = libmoe.create("pr-moe", num_experts=N, **options)
    layers = [method.build_layer(Site(D, 12, index=i, count=count)) for i in range(count)]
    assert [layer.experts.num_experts for layer in layers] == expected
    assert [layer.router.num_experts for layer in layers] == expected
    with pytest.raises(ConfigError, match="deep_layers=-1 must not be negative"):
        libmoe.create("pr-moe", deep_layers=-1)


def test_a_pyramid_trains_is_upcycled_and_comes_back_from_disk(tmp_path: Any) -> None:
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    dense = LlamaForCausalLM(config)
    model = libmoe.moeify(copy.deepcopy(dense), "pr-moe", options={"num_experts": 4}, init="copy", where="every:2")
    assert [layer.experts.num_experts for _, layer in moe_layers(model)] == [4, 8]
    ids = torch.randint(40, (2, 9))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    for (_, layer), index in zip(moe_layers(model), (1, 3), strict=True):
        mlp, x_TD = dense.model.layers[index].mlp, torch.randn(5, 16)
        torch.testing.assert_close(layer.shared(x_TD), mlp(x_TD))
        torch.testing.assert_close(layer.experts.materialise(0)(x_TD), mlp(x_TD))
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("layers", "width", "method", "options", "billions"),
    [
        (24, 2048, "switch", {"num_experts": 128}, 52),
        (24, 2048, "pr-moe", {"num_experts": 64}, 31),
        (24, 1024, "switch", {"num_experts": 128}, 13),
        (24, 1024, "pr-moe", {"num_experts": 32}, 4),
        (21, 2048, "pr-moe", {"num_experts": 64, "deep_layers": 2}, 27),  # what the paper distils these two to
        (21, 1024, "pr-moe", {"num_experts": 32, "deep_layers": 2}, 3.5),
    ],
)
def test_published_models_have_the_published_sizes(
    layers: int, width: int, method: str, options: dict[str, Any], billions: float
) -> None:
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=16, n_positions=2048, vocab_size=51_200)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
        libmoe.moeify(model, method, options={**options, "expert_hidden": 4 * width}, where="every:2")
    assert count_parameters(model) / 1e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize(("method", "options"), [("residual-moe", {}), ("tutel", {"postscore": False})])
def test_no_standard_architecture_mixes_or_weighs_inputs(method: str, options: dict[str, Any], tmp_path: Any) -> None:
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model = libmoe.moeify(LlamaForCausalLM(config), method, options=options)
    with pytest.raises(ConfigError, match="adds its experts' outputs, weighted; this layer does something else"):
        export(model, tmp_path / "standard", "mixtral")


def test_the_mix_survives_bfloat16_and_autocast() -> None:
    layer = build().bfloat16()
    assert layer(tokens().bfloat16()[None]).dtype == torch.bfloat16
    layer, x = build(False).float(), tokens().float()[None]
    with use(ForwardContext()), torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    torch.testing.assert_close(half.float(), layer(x), rtol=0.1, atol=0.05)
