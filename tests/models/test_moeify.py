"""Dense models become MoE models in place."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer, moe_layers
from libmoe.methods import METHODS, Method, create
from libmoe.models import moeify
from libmoe.testing.probes import default_side

ARCHITECTURES = [
    "llama", "phi3", "lfm2", "gemma", "modernbert", "gpt2", "gpt_neox", "nemotron", "opt", "bert", "distilbert",
    "vit", "clip", "t5", "mt5", "bart", "whisper", "qwen3", "mistral", "starcoder2",
]  # fmt: skip
EXACT = [name for name in METHODS.names() if METHODS.info(name).facts["exact_upcycling"]]
FOUR = {"num_experts": 4, "top_k": 2}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_give_the_dense_outputs_whatever_the_form(tiny, answer, architecture) -> None:
    model = tiny(architecture)
    dense = answer(model)
    moeify(model, "smoe", options=FOUR, init="copy", seed=0)
    assert all(layer.experts.num_experts == 4 for _, layer in moe_layers(model))
    assert difference(answer(model), dense) <= 1e-6 * max(1.0, float(dense.abs().max()))
    assert model.libmoe.receipt.max_abs_difference <= 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_methods_that_promise_exact_upcycling_keep_it(tiny, answer, name) -> None:
    model = tiny("llama")
    dense = answer(model)
    with options(side=default_side(2)):
        assert difference(answer(moeify(model, name, init="copy", seed=0)), dense) <= 1e-6


def test_a_new_model_does_not_compute_what_the_dense_one_did(tiny, answer) -> None:
    """The comparison above can fail: without copying, outputs differ."""
    model = tiny("llama")
    dense = answer(model)
    assert difference(answer(moeify(model, "smoe", options=FOUR, seed=0)), dense) > 1e-3


def test_feed_forward_experts_beside_other_kinds_are_copies_too(tiny) -> None:
    model = tiny("llama")
    gate = model.model.layers[0].mlp.gate_proj.weight.detach().clone()
    moeify(model, "moe-plus-plus", init="copy")
    (bank,) = [m for m in model.model.layers[0].mlp.experts.modules() if isinstance(m, FFNExperts)]
    assert all(torch.equal(bank.w_in[e, :48], gate) for e in range(bank.num_experts))


def test_copies_of_another_width_are_refused(tiny) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.layers\.0\.mlp, of width 48, but they have 24.*expert_hidden"
    ):
        moeify(tiny("llama"), "smoe", options={"expert_hidden": 24}, init="copy")


def test_what_surrounds_an_ffn_stays(tiny) -> None:
    bert = tiny("bert")
    layer = bert.bert.encoder.layer[0]
    norm, dropout = layer.output.LayerNorm, layer.output.dropout
    moeify(bert, "smoe")
    assert layer.output.LayerNorm is norm
    assert layer.output.dropout is dropout
    assert isinstance(layer.intermediate.dense, MoELayer)
    gpt2 = tiny("gpt2")
    dropout = gpt2.transformer.h[0].mlp.dropout
    moeify(gpt2, "smoe")
    assert gpt2.transformer.h[0].mlp.dropout is dropout


def test_dropout_inside_an_ffn_goes_with_it_and_is_reported(tiny) -> None:
    model = moeify(tiny("bart", extra={"activation_dropout": 0.2}), "smoe")
    assert all(layer.activation_dropout == 0.0 for layer in model.model.encoder.layers)
    assert model.libmoe.receipt.checks["hidden_dropout_removed"] == 0.2


def test_dtype_stays_and_selection_biases_keep_their_precision(tiny) -> None:
    model = moeify(tiny("llama").bfloat16(), "deepseek-v3", options=FOUR)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.layers[0].mlp.router.selection_bias.dtype == torch.float32


def test_equal_names_and_shapes_start_equal_whatever_the_method(tiny) -> None:
    first = moeify(tiny("llama"), "smoe", options=FOUR, seed=5).state_dict()
    second = moeify(tiny("llama"), "sigmoid", options=FOUR, seed=5).state_dict()
    other = moeify(tiny("llama"), "smoe", options=FOUR, seed=6).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.layers.0.mlp.experts.w_in"], other["model.layers.0.mlp.experts.w_in"])


def test_training_goes_through_the_new_layers(tiny, batch_of) -> None:
    model = moeify(tiny("t5"), "smoe", options=FOUR).train()
    batch = batch_of(model)
    model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for _, m in moe_layers(model) for p in m.parameters()
    )


def test_generation_with_a_cache_equals_the_dense_model(tiny, batch_of) -> None:
    model = tiny("llama")
    prompt = batch_of(model)["input_ids"][:1, :5]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    dense = model.generate(prompt, **settings)
    assert torch.equal(moeify(model, "smoe", init="copy").generate(prompt, **settings), dense)


def test_dense_leaves_the_model_as_it_is(tiny, answer) -> None:
    model = tiny("llama")
    before = answer(model)
    moeify(model, "dense")
    assert torch.equal(answer(model), before)
    assert model.libmoe.sites == []


def test_what_was_done_is_recorded_as_json(tiny) -> None:
    model = moeify(tiny("whisper"), "smoe", options=FOUR, where="decoder", seed=3)
    section = json.loads(json.dumps(model.config.to_dict()))["libmoe"]
    assert (section["method"], section["where"], section["seed"]) == ("smoe", "decoder", 3)
    assert section["options"]["num_experts"] == 4
    assert [site["path"] for site in section["sites"]] == ["model.decoder.layers.0", "model.decoder.layers.1"]
    assert [site["layer"] for site in section["sites"]] == [f"model.decoder.layers.{i}.fc1" for i in (0, 1)]


def test_the_receipt_counts_parameters(tiny) -> None:
    model = tiny("llama")
    before = sum(p.numel() for p in model.parameters())
    receipt = moeify(model, "smoe", options=FOUR).libmoe.receipt
    assert receipt.params_before == before
    assert receipt.params_after == sum(p.numel() for p in model.parameters())
    assert receipt.max_abs_difference is None  # nothing was copied


def test_a_method_may_be_given_ready_made(tiny) -> None:
    model = moeify(tiny("llama"), create("smoe", num_experts=3))
    assert model.libmoe.method_name == "smoe"
    assert model.libmoe.options["num_experts"] == 3


def test_building_on_meta_allocates_nothing(config_of) -> None:
    from libmoe.models import build_backbone

    with torch.device("meta"):
        model = moeify(build_backbone(config_of("llama")), "smoe", init="copy")
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "smo"}, "did you mean 'smoe'"),
        ({"method": "smoe", "options": {"num_expert": 3}}, "did you mean 'num_experts'"),
        ({"method": "smoe", "init": "copied"}, "choose 'scratch' or 'copy'"),
        ({"method": create("smoe"), "options": {"top_k": 1}}, "options belong to a method given by name"),
    ],
)
def test_mistakes_are_named(tiny, arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        moeify(tiny("llama"), **arguments)


def test_a_method_without_a_name_is_refused(tiny) -> None:
    @dataclass(kw_only=True)
    class Nameless(Method):
        pass

    with pytest.raises(ConfigError, match="Nameless has no name"):
        moeify(tiny("llama"), Nameless())


def test_experts_that_are_no_networks_cannot_be_copies(tiny, monkeypatch) -> None:
    from libmoe.experts import ZeroExperts

    monkeypatch.setattr(
        METHODS.get("smoe"), "build_experts", lambda self, site: ZeroExperts(self.num_experts)
    )
    with pytest.raises(ConfigError, match=r"no feed-forward experts to copy .* \(ZeroExperts\)"):
        moeify(tiny("llama"), "smoe", init="copy")


def test_the_model_may_lie_in_another_module(tiny, answer) -> None:
    """Hooks open the context for the whole model even when a part of it is called."""
    model = moeify(tiny("llama"), "hash", options=FOUR)
    inner: nn.Module = model.model
    assert inner(input_ids=torch.ones(1, 4, dtype=torch.long)).last_hidden_state.isfinite().all()


def test_feed_forward_chunking_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="chunk_size_feed_forward"):
        moeify(tiny("bert", extra={"chunk_size_feed_forward": 4}), "smoe")


def test_new_layers_are_in_the_mode_of_the_model(tiny) -> None:
    assert not any(module.training for module in moeify(tiny("llama"), "switch").modules())
    assert all(module.training for module in moeify(tiny("bert").train(), "switch").modules())


def test_a_failure_leaves_the_model_as_it_was(tiny, answer) -> None:
    """The two towers of CLIP may have FFNs of different widths, and copies of one width fit one of them."""
    vision = {**tiny("clip").config.vision_config.to_dict(), "intermediate_size": 64}
    model = tiny("clip", extra={"vision_config": vision})
    before = answer(model)
    with pytest.raises(ConfigError, match=r"vision_model.*of width 64, but they have 48"):
        moeify(model, "smoe", options={"expert_hidden": 48}, init="copy")
    assert torch.equal(answer(model), before)
    assert not list(moe_layers(model))
