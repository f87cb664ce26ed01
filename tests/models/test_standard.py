"""Standard MoE architectures: the classes of transformers are the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import ZeroExperts
from libmoe.layers import moe_layers
from libmoe.models import export, import_, load, moeify, save
from libmoe.models.standard import FAMILIES

FOUR = {"num_experts": 4, "top_k": 2}
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "mixtral": {**SHAPE, "intermediate_size": 24, "num_local_experts": 6},
    "olmoe": {**SHAPE, "intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3},
    "qwen2_moe": {
        **SHAPE,
        "intermediate_size": 24,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
    },
    "qwen3_moe": {
        **SHAPE,
        "head_dim": 8,
        "intermediate_size": 24,
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "tie_word_embeddings": True,
    },
    "deepseek_v3": {
        **SHAPE,
        "num_key_value_heads": 4,
        "intermediate_size": 24,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_mtp_layers": 0,
    },
    "phimoe": {
        **SHAPE,
        "intermediate_size": 24,
        "num_local_experts": 6,
        "router_jitter_noise": 0.1,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "switch_transformers": {
        "vocab_size": 97,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "num_heads": 4,
        "num_experts": 4,
        "decoder_start_token_id": 0,
    },
}
HEADS = {"switch_transformers": "ForConditionalGeneration"}


def standard_model(model_type: str) -> nn.Module:
    config = transformers.CONFIG_MAPPING[model_type](**SMALL[model_type])
    head = HEADS.get(model_type, "ForCausalLM")
    model = getattr(transformers, FAMILIES[model_type].prefix + head)(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if any(part in name for part in ("gate.weight", "router.", "correction_bias")):
                tensor.normal_(std=0.3)  # gates start at zero, which would tie all experts
    return model


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).logits


def test_every_family_is_tested() -> None:
    assert FAMILIES.keys() == SMALL.keys()


@pytest.mark.parametrize("model_type", SMALL)
def test_import_keeps_outputs_and_gradients(model_type) -> None:
    theirs = standard_model(model_type)
    ours = import_(copy.deepcopy(theirs))
    expected, got = theirs(**batch()), ours(**batch())
    assert float((expected.logits - got.logits).abs().max()) <= 1e-5
    assert ours.libmoe.receipt.max_abs_difference <= 1e-5
    expected.loss.backward()
    got.loss.backward()
    family = FAMILIES[model_type]
    compared = 0
    for path, layer in moe_layers(ours):
        grads = {
            name: parameter.grad
            for name, parameter in theirs.get_submodule(path).named_parameters()
            if parameter.grad is not None
        }
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(parameter.grad)
        for name, grad in family.write(layer, path).items():
            inner = name.removeprefix(f"{path}.")
            if inner in grads:
                error = (grad - grads[inner]).square().mean().sqrt() / grads[
                    inner
                ].square().mean().sqrt().clamp_min(1e-12)
                assert float(error) <= 1e-4, name
                compared += 1
    assert compared >= 3 * len(list(moe_layers(ours)))
    outside = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if name in outside:
            torch.testing.assert_close(outside[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", SMALL)
def test_round_trip_through_folders(tmp_path, model_type) -> None:
    theirs = standard_model(model_type)
    expected = outputs(theirs)
    ours = load(save(import_(theirs), tmp_path / "ours"))
    assert float((outputs(ours) - expected).abs().max()) <= 1e-5
    receipt = export(ours, tmp_path / "standard")
    assert receipt.checks["architecture"] == model_type
    assert receipt.max_abs_difference <= 1e-5
    again = type(theirs).from_pretrained(tmp_path / "standard").eval()
    assert not hasattr(again.config, "libmoe")
    assert float((outputs(again) - expected).abs().max()) <= 1e-5
    assert float((outputs(import_(tmp_path / "standard")) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "method", "options", "where", "target"),
    [
        ("llama", "smoe", FOUR, "all", "mixtral"),
        ("mistral", "smoe", {**FOUR, "order": "topk-softmax"}, "all", "mixtral"),
        ("qwen3", "smoe", {**FOUR, "renormalise": False}, "every:2", "qwen3_moe"),
        ("qwen2", "smoe", {**FOUR, "shared_hidden": 20, "shared_gate": True}, "first_dense:1", "qwen2_moe"),
        (
            "deepseek_v3",
            "deepseek-v3",
            {**FOUR, "n_group": 2, "topk_group": 1},
            "first_dense:1",
            "deepseek_v3",
        ),
        ("t5", "switch", {"num_experts": 4, "expert_hidden": 48}, "every:2", "switch_transformers"),
    ],
)
def test_our_models_leave_as_standard_ones(
    tiny, answer, tmp_path, architecture, method, options, where, target
) -> None:
    model = moeify(tiny(architecture), method, options=options, where=where, seed=0)
    receipt = export(model, tmp_path / "standard")
    assert receipt.checks["architecture"] == target
    auto = (
        transformers.AutoModelForSeq2SeqLM
        if target == "switch_transformers"
        else transformers.AutoModelForCausalLM
    )
    standard = auto.from_pretrained(tmp_path / "standard").eval()
    assert standard.config.model_type == target
    torch.testing.assert_close(answer(standard), answer(model), rtol=0, atol=1e-5)


def test_what_no_standard_architecture_can_say_is_refused_with_the_reason(tiny, tmp_path) -> None:
    def refused(model: nn.Module, to: str = "auto") -> str:
        with pytest.raises(ConfigError) as error:
            export(model, tmp_path / "standard", to)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "standard").exists()
        return str(error.value)

    assert "mixtral routes by softmax top-k, this is SigmoidRouter" in refused(
        moeify(tiny("llama"), "sigmoid")
    )
    assert "none has the backbone of gpt2" in refused(moeify(tiny("gpt2"), "smoe"))
    assert "has no shared experts" in refused(moeify(tiny("llama"), "smoe", options={"shared_hidden": 8}))
    assert "has experts in every block, here [0] are dense" in refused(
        moeify(tiny("llama"), "smoe", where="last:1")
    )
    assert "it can be mixtral" in refused(moeify(tiny("llama"), "smoe"), "olmoe")
    assert "qwen2_moe has a gated shared expert" in refused(moeify(tiny("qwen2"), "smoe"))
    assert "a token to one expert" in refused(moeify(tiny("t5"), "smoe", where="every:2"))
    assert "every n-th block" in refused(
        moeify(tiny("t5"), "switch", options={"expert_hidden": 48}, where="first:1")
    )
    assert "experts of mixtral have no biases" in refused(
        moeify(tiny("llama", extra={"mlp_bias": True}), "smoe")
    )
    assert "did you mean 'mixtral'" in refused(moeify(tiny("llama"), "smoe"), "mixtrl")
    assert "has no MoE layers" in refused(tiny("llama"))
    assert "knows no gradient estimators" in refused(
        moeify(tiny("llama"), "smoe", options={"estimator": "straight-through"})
    )


def test_parameters_of_the_backbone_that_have_no_place_are_named(tiny, tmp_path) -> None:
    model = moeify(tiny("llama", extra={"attention_bias": True}), "smoe")
    with pytest.raises(
        ConfigError, match=r"mixtral has no place for model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        export(model, tmp_path / "standard")


def test_layers_that_differ_cannot_share_one_configuration(tiny, tmp_path) -> None:
    model = moeify(tiny("llama"), "smoe", options=FOUR)
    model.model.layers[1].mlp.router.top_k = 1
    with pytest.raises(ConfigError, match="one num_experts_per_tok for all layers, here they are 2 and 1"):
        export(model, tmp_path / "standard")


def test_other_kinds_of_experts_are_named(tiny, tmp_path) -> None:
    model = moeify(tiny("llama"), "smoe", options=FOUR)
    model.model.layers[1].mlp.experts = ZeroExperts(4)
    with pytest.raises(
        ConfigError, match="mixtral has gated feed-forward experts, here they are ZeroExperts"
    ):
        export(model, tmp_path / "standard")


def test_an_exported_model_that_would_compute_something_else_is_refused(tiny, tmp_path) -> None:
    """The last word has a comparison of outputs, not the table of conditions."""
    model = moeify(tiny("llama"), "smoe", options=FOUR)
    model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ConfigError, match="outputs would differ by"):
        export(model, tmp_path / "standard")


def test_import_takes_training_options_and_goes_on_training() -> None:
    model = import_(standard_model("mixtral"), options={"balance": 0.01}).train()
    assert model.libmoe.method.balance == 0.01
    model(**batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("bad", ["llama", "gpt2"])
def test_import_of_a_dense_model_is_refused(tiny, bad) -> None:
    with pytest.raises(ConfigError, match="unknown standard MoE architecture"):
        import_(tiny(bad))


def test_import_of_a_standard_model_whose_blocks_are_dense_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="every block is dense"):
        import_(tiny("deepseek_v3"))
