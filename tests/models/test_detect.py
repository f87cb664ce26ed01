"""Finding feed-forward networks by their form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel

from libmoe.core.errors import ConfigError
from libmoe.models import find_ffns, moeify
from libmoe.models.forms import activation_name
from libmoe.ops.activations import ACTIVATIONS

# architecture: number of FFNs, activation, gated, bias, whole (the FFN is a module of its own)
FORMS = {
    "llama": (2, "silu", True, False, True),
    "phi3": (2, "silu", True, False, True),  # gate and up in one matrix
    "lfm2": (2, "silu", True, False, True),  # no module for the activation
    "gemma": (2, "gelu_new", True, False, True),
    "modernbert": (2, "gelu", True, False, True),
    "gpt2": (2, "gelu_new", False, True, False),  # transposed weights
    "bloom": (2, "gelu_new", False, True, False),  # the residual is added inside
    "gpt_neox": (2, "gelu", False, True, True),
    "nemotron": (2, "relu2", False, False, True),
    "opt": (2, "relu", False, True, False),  # linears live in the layer
    "bert": (2, "gelu", False, True, False),  # two modules, the second with residual and norm
    "distilbert": (2, "gelu", False, True, False),
    "vit": (2, "gelu", False, True, True),
    "clip": (4, "quick_gelu", False, True, True),
    "t5": (4, "relu", False, False, True),
    "mt5": (4, "gelu_new", True, False, True),
    "bart": (4, "gelu", False, True, False),
    "whisper": (4, "gelu", False, True, False),
}
OTHER_WIDTH = {"bloom": 4 * 32}  # has no field for it


@pytest.mark.parametrize("architecture", FORMS)
def test_every_form_is_found_and_read_as_it_computes(tiny, architecture) -> None:
    changes = {"intermediate_size": None} if architecture in OTHER_WIDTH else {}
    model = tiny(architecture, **changes)
    count, activation, gated, bias, whole = FORMS[architecture]
    found = find_ffns(model)
    assert len(found) == count
    for ffn in found:
        site = ffn.site()
        assert (site.activation, site.gated, site.bias, ffn.is_whole) == (activation, gated, bias, whole)
        assert site.dim == 32
        if architecture != "lfm2":  # rounds widths up itself
            assert site.hidden == OTHER_WIDTH.get(architecture, 48)
        x_TD = torch.randn(5, 32)
        torch.testing.assert_close(ffn.read()(x_TD), ffn.dense(x_TD), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", sorted({id(fn): name for name, fn in reversed(ACTIVATIONS.items())}.values())
)
def test_activations_are_recognised_by_their_values(name) -> None:
    assert ACTIVATIONS[activation_name(ACTIVATIONS[name])] is ACTIVATIONS[name]


def test_an_encoder_comes_before_its_decoder(tiny) -> None:
    stacks = [ffn.stack for ffn in find_ffns(tiny("whisper"))]
    assert stacks == ["model.encoder.layers"] * 2 + ["model.decoder.layers"] * 2


def test_heads_and_connectors_are_left_alone() -> None:
    config = CONFIG_MAPPING["siglip_vision_model"](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    model = AutoModel.from_config(config)
    assert any("head.mlp" in name for name, _ in model.named_modules())
    assert [ffn.stack for ffn in find_ffns(model)] == ["encoder.layers"]


def test_dropout_inside_an_ffn_is_noted(tiny) -> None:
    assert find_ffns(tiny("t5"))[0].hidden_dropout == 0.1
    assert find_ffns(tiny("bart", extra={"activation_dropout": 0.2}))[0].hidden_dropout == 0.2
    assert find_ffns(tiny("gpt2"))[0].hidden_dropout == 0.0  # its dropout is on the output and stays


def test_experts_already_there_are_refused(tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.experts \(MixtralExperts\).*import_"):
        find_ffns(tiny("mixtral"))
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp is an MoE layer already"):
        find_ffns(moeify(tiny("llama"), "smoe"))


def test_a_model_without_ffns_is_refused(tiny) -> None:
    with pytest.raises(ConfigError, match="no feed-forward network found in MambaForCausalLM"):
        find_ffns(tiny("mamba"))


def test_an_unknown_activation_is_refused(tiny) -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.act_fn = nn.Softshrink()
    with pytest.raises(ConfigError, match=r"activation of model\.layers\.1\.mlp"):
        find_ffns(model)


def test_a_norm_inside_the_ffn_is_refused(tiny) -> None:
    model = tiny("llama")
    model.model.layers[0].mlp.inner_norm = nn.LayerNorm(48)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.inner_norm"):
        find_ffns(model)


def test_a_module_that_does_more_than_its_form_says_is_refused(tiny) -> None:
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: 2 * plain(x)
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.mlp \(LlamaMLP\) computes something else"):
        moeify(model, "smoe")


def test_a_gated_ffn_that_needs_more_than_hidden_states_is_refused(tiny) -> None:
    model = tiny("llama")
    model.model.layers[0].mlp.forward = lambda x, residual: x + residual
    with pytest.raises(
        ConfigError, match=r"model\.layers\.0\.mlp \(LlamaMLP\) takes more than hidden states"
    ):
        find_ffns(model)
