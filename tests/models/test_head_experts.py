"""Attention of transformers models as a mixture of heads (MoA; DS-MoE, arXiv 2404.05567)."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.layers import MoALayer, moe_layers
from libmoe.methods.ds_moe import infer_with
from libmoe.models import account, add_head_experts, load, moeify, param_roles, save
from libmoe.models.accounting import flop_counter
from libmoe.models.trainable import freeze_others
from libmoe.train.parallel import recompute_blocks

CACHE = next(
    n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters
)
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "granite", "olmo"]
BOTH = {"num_experts": 6, "top_k": 2, "attention_experts": 4, "attention_top_k": 2}


def dense(tiny: Any, architecture: str = "llama", **more: Any) -> Any:
    return tiny(architecture, **HEADS, **more)


def undecided(model: Any, **more: Any) -> Any:
    options = {"num_experts": 4, "top_k": 4, "router_init_scale": 0.0}
    return add_head_experts(copy.deepcopy(model), options=options, **more)


def decided(model: Any, std: float = 0.5, seed: int = 3) -> Any:
    """The same with gates that make up their mind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in moe_layers(model):
            layer.router.gate.weight.normal_(0, std, generator=generator)
    return model


def attentions(model: Any) -> list[MoALayer]:
    return [layer for _, layer in moe_layers(model) if isinstance(layer, MoALayer)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_undecided_gates_on_heads_cut_from_dense_attention_compute_what_it_did(
    architecture: str, implementation: str, tiny: Any, answer: Any, batch_of: Any
) -> None:
    """Equal scores 1 / N on outputs times N, with all experts, in training and outside."""
    model = dense(tiny, architecture)
    model.set_attn_implementation(implementation)
    expected = answer(model)
    new = undecided(model)
    assert [layer.experts.heads for layer in attentions(new)] == [2, 2]
    for training in (True, False):
        found = new.train(training)(**batch_of(new)).logits
        assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
    assert (answer(decided(new)) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("where", ["last:1", [0]])
def test_places_are_chosen_as_elsewhere(where: Any, tiny: Any, answer: Any) -> None:
    model = dense(tiny)
    new = undecided(model, where=where)
    assert [path for path, _ in moe_layers(new)] == [f"model.layers.{int(where == 'last:1')}.self_attn.heads"]
    torch.testing.assert_close(answer(new), answer(model))


@pytest.mark.parametrize(
    "policy",
    [{"top_k": 2}, {"policy": "threshold", "threshold": 0.9}, {"policy": "threshold", "threshold": 1.6}],
)
@torch.no_grad()
def test_generation_with_a_cache_is_the_full_forward_pass(policy: dict[str, Any], tiny: Any) -> None:
    """With as many experts as a token needs, or none, and a cache of the size that the dense model has."""
    model = dense(tiny)
    new = decided(add_head_experts(copy.deepcopy(model), options={"num_experts": 4, "top_k": 2, **policy}))
    ids = torch.randint(4, 97, (2, 9))
    whole, cache = new(ids).logits, None
    for t, part in ((5, ids[:, :5]), *((t + 1, ids[:, t : t + 1]) for t in range(5, 9))):
        output = new(part, **{CACHE: cache}, use_cache=True)
        cache = output.past_key_values
        torch.testing.assert_close(output.logits[:, -1], whole[:, t - 1], rtol=1e-5, atol=1e-6)
    of_dense = model(ids, use_cache=True).past_key_values
    assert (
        [c.keys.shape for c in cache.layers] == [c.keys.shape for c in of_dense.layers] == [(2, 2, 9, 4)] * 2
    )
    torch.testing.assert_close(cache.layers[0].keys, of_dense.layers[0].keys)
    generated = new.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for _ in range(4):
        ids = torch.cat([ids, new(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


@torch.no_grad()
def test_padding_changes_nothing(tiny: Any) -> None:
    new = decided(add_head_experts(dense(tiny), options={"num_experts": 4, "top_k": 2}))
    ids = torch.randint(4, 97, (2, 9))
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    padded = new(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0)).logits
    torch.testing.assert_close(padded[1:, 4:], new(ids[1:, 4:]).logits, rtol=1e-5, atol=1e-6)


def test_the_whole_method_is_saved_loaded_and_used_part_by_part(
    tiny: Any, answer: Any, tmp_path: Any
) -> None:
    """FFNs and attention of the last block, each with a number of experts of its own."""
    new = decided(moeify(dense(tiny), "ds-moe", options=BOTH, where="last:1", seed=0))
    kinds = [(layer.index, type(layer).__name__, layer.router.num_experts) for _, layer in moe_layers(new)]
    assert kinds == [(0, "MoELayer", 6), (1, "MoALayer", 4)]
    again = load(save(new, tmp_path / "model"))
    assert torch.equal(answer(again), answer(new)) and again.libmoe.edits == new.libmoe.edits
    section = json.loads((tmp_path / "model" / "config.json").read_text())["libmoe"]
    assert [edit["kind"] for edit in section["edits"]] == ["head-experts"]
    assert (
        infer_with(again, "top-k", top_k=6, part="ffn")
        == infer_with(again, "threshold", part="attention")
        == 1
    )
    assert [layer.router.policy for _, layer in moe_layers(again)] == ["top-k", "threshold"]
    with pytest.raises(ConfigError, match=r"top_k=5 must be between 1 and num_experts=4"):
        infer_with(again, "top-k", top_k=5)
    assert [layer.router.top_k for _, layer in moe_layers(again)] == [6, 2]
    assert infer_with(again, "threshold", threshold=0.0) == 2
    torch.testing.assert_close(answer(again), answer(new.train()))


def test_initial_weights_depend_on_the_seed_alone(tiny: Any) -> None:
    def gates(seed: int, draws: int) -> list[Tensor]:
        torch.rand(draws)
        model = moeify(dense(tiny), "ds-moe", options=BOTH, seed=seed)
        return [layer.router.gate.weight for _, layer in moe_layers(model)] + [
            attentions(model)[1].experts.w_q
        ]

    one, same, other = gates(0, 1), gates(0, 2), gates(1, 1)
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))
    assert not torch.equal(one[0][:4], one[2]) and not torch.equal(one[2], one[3])


def test_other_experts_in_ffns_and_other_routers_in_attention(tiny: Any, answer: Any, tmp_path: Any) -> None:
    new = moeify(dense(tiny), "smoe", options={"num_experts": 4, "top_k": 2})
    options = {"num_experts": 3, "top_k": 2, "balance": 0.1}
    add_head_experts(decided(new), "smoe", options=options, heads=4, init="scratch", where="first:1", seed=0)
    (layer,) = attentions(new)
    assert layer.index == 2 and layer.experts.heads == 4 and layer.experts.w_q.shape == (3, 16, 32)
    assert torch.equal(answer(load(save(new, tmp_path / "model"))), answer(new))
    roles = param_roles(new)
    path = "model.layers.0.self_attn.heads"
    assert [roles[f"{path}.{name}"] for name in ("router.gate.weight", "experts.w_o")] == ["router", "expert"]
    assert roles["model.layers.0.self_attn.attention.k_proj.weight"] == "backbone"
    trained = freeze_others(new, ["experts:1"])
    assert f"{path}.experts.w_q" in trained and new.trained_rows[f"{path}.experts.w_q"] == [1]


def test_the_loss_of_attention_has_a_coefficient_of_its_own(tiny: Any, batch_of: Any) -> None:
    """Its gradient at the last gate is that of minus the mutual information of tokens and experts."""
    model, inputs, gradients = dense(tiny), {}, {}
    for alpha in (0.0, 0.7):
        options = {**BOTH, "mutual_information": 0.0, "attention_mutual_information": alpha}
        new = decided(moeify(copy.deepcopy(model), "ds-moe", options=options, seed=0)).train()
        layer = attentions(new)[-1]
        layer.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0].detach().flatten(0, 1)))
        ids = batch_of(new)["input_ids"]
        new(ids, labels=ids).loss.backward()
        gradients[alpha] = layer.router.gate.weight.grad
    weight = layer.router.gate.weight.detach().clone().requires_grad_()
    scores_TN = (inputs["x"] @ weight.T).softmax(1)
    information = (scores_TN * (scores_TN / scores_TN.mean(0)).log()).sum(1).mean()
    (expected,) = torch.autograd.grad(-0.7 * information, [weight])
    torch.testing.assert_close(gradients[0.7] - gradients[0.0], expected, rtol=1e-4, atol=1e-6)
    usual = moeify(dense(tiny), "ds-moe", options={"num_experts": 6, "top_k": 2, "attention_experts": 2})
    assert [[loss.coefficient for loss in layer.losses[:2]] for _, layer in moe_layers(usual)] == (
        [[6.3e-4] * 2] * 2 + [[3.5e-4] * 2] * 2
    )


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_without_activation_checkpointing(
    training: bool, tiny: Any, batch_of: Any
) -> None:
    new = decided(moeify(dense(tiny), "ds-moe", options=BOTH, seed=0)).train()
    for layer in attentions(new):
        layer.router.train(training)
    ids = batch_of(new)["input_ids"]

    def gradients() -> dict[str, Tensor]:
        new.zero_grad()
        new(ids, labels=ids, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in new.named_parameters()}

    plain = gradients()
    recompute_blocks(new)
    again = gradients()
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())
    assert all(gradient.any() for name, gradient in plain.items() if ".heads." in name)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_costs_are_counted_as_they_run(top_k: int, tiny: Any) -> None:
    model, length = dense(tiny), 16
    new = add_head_experts(copy.deepcopy(model), options={"num_experts": 4, "top_k": top_k}).eval()
    libmoe.experts.set_backend(new, "reference")
    ids = torch.zeros(1, length, dtype=torch.long)
    with flop_counter() as counter, torch.no_grad():
        new(ids, use_cache=False)
    of_dense, cost = account(model, length), account(new, length)
    gates, mixing = 2 * 2 * 4 * 32, 2 * 2 * 32
    assert (
        cost.flops_per_token - top_k * mixing
    ) * length == counter.get_total_flops()  # mixing is no product here
    heads = 2 * (
        4 * 32 * 32 + 4 * 32 * length
    )  # projections of queries and outputs, and looks at every token
    idle = (1 - top_k / 4) * heads
    assert cost.flops_per_token == pytest.approx(of_dense.flops_per_token + gates + top_k * mixing - idle)
    trained = 3 * (of_dense.flops_per_token + gates + 4 * mixing)
    assert cost.train_flops_per_token == pytest.approx(trained)
    assert cost.active_params == of_dense.active_params + 2 * 4 * 32 - round(
        (1 - top_k / 4) * 2 * 2 * 32 * 32
    )


def test_traces_and_interventions_reach_attention(tiny: Any, batch_of: Any) -> None:
    new, seen = decided(add_head_experts(dense(tiny), options={"num_experts": 4, "top_k": 2})), []
    record = [lambda ctx, routing: seen.append((ctx.index, routing.plan))]
    with libmoe.options(recorders=record, interventions=[BanExperts([1])]):
        new(**batch_of(new))
    assert [index for index, _ in seen] == [0, 1]
    assert all(1 not in plan.expert_A and (plan.experts_per_token() == 2).all() for _, plan in seen)


def test_attention_weights_can_be_looked_at(tiny: Any, batch_of: Any) -> None:
    """Of all heads of a token's experts."""
    new = add_head_experts(dense(tiny), options={"num_experts": 4, "top_k": 4, "router_init_scale": 0.0})
    new.set_attn_implementation("eager")
    weights = new.train()(**batch_of(new), output_attentions=True).attentions
    assert [weight.shape for weight in weights] == [(2, 8, 12, 12)] * 2


@pytest.mark.parametrize(
    ("architecture", "given", "message"),
    [
        ("vit", {}, "is not attention by q_proj/k_proj/v_proj/o_proj with grouped keys and values"),
        ("phi3", {}, "is not attention by q_proj/k_proj/v_proj/o_proj with grouped"),
        ("olmo2", {}, "has q_norm, which is not of single heads"),
        ("t5", {}, "one stack, not two"),
        (
            "llama",
            {"options": {"num_experts": 3, "top_k": 1}},
            r"num_experts=3: .* num_experts from \[1, 2, 4\]",
        ),
        ("llama", {"heads": 4}, "num_experts=4: .* or init='scratch' and heads=2 or a multiple"),
        ("llama", {"heads": 3, "init": "scratch"}, "every expert needs as many of each of these"),
        ("llama", {"init": "zeros"}, "init='zeros' is unknown; choose 'scratch' or 'copy'"),
        ("llama", {"where": "last:0"}, "where='last:0' selects none"),
        ("llama", {"method": "dense", "options": {}}, "method 'dense' makes layers of its own"),
        ("llama", {"method": "smoo"}, "unknown method 'smoo'; did you mean 'smoe'"),
        (
            "llama",
            {"method": "smoe", "options": {"num_experts": 4, "shared_hidden": 8}},
            "wants a shared part besides",
        ),
        ("llama", {"method": "moe-plus-plus"}, "wants experts of other kinds besides"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(
    architecture: str, given: dict[str, Any], message: str, tiny: Any, answer: Any
) -> None:
    model = dense(tiny, architecture) if architecture not in ("vit", "t5") else tiny(architecture)
    before = answer(model)
    with pytest.raises(ConfigError, match=message):
        add_head_experts(model, **{"options": {"num_experts": 4, "top_k": 2}, **given})
    assert torch.equal(answer(model), before) and not list(moe_layers(model))


def test_options_of_the_method_are_checked() -> None:
    for given, message in (
        ({"attention_experts": -1}, "attention_experts=-1 must not be negative"),
        (
            {"attention_experts": 4, "attention_top_k": 5},
            "attention_top_k=5 must be between 1 and attention_experts=4",
        ),
        ({"attention_experts": 4, "attention_mutual_information": -1.0}, "coefficient must not be negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            libmoe.create("ds-moe", given)
    assert libmoe.create("ds-moe", {"attention_experts": 16}).edits()[0][1]["options"]["top_k"] == 10
