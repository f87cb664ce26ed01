"""Backbones from configurations: any architecture, weights paired by seed."""

from __future__ import annotations

import pytest
import torch

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.models import BackboneConfig, build_backbone, moeify, save

HEADS = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
}


@pytest.mark.parametrize("architecture", HEADS)
def test_an_architecture_gets_its_usual_head(tiny, architecture) -> None:
    assert type(tiny(architecture)).__name__ == HEADS[architecture]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "vit", "t5", "whisper"])
def test_weights_depend_on_names_and_not_on_what_else_there_is(config_of, architecture) -> None:
    """A model with wider FFNs has the same attention, embeddings and norms."""
    narrow = dict(build_backbone(config_of(architecture), seed=1).named_parameters())
    wide = dict(build_backbone(config_of(architecture, intermediate_size=80), seed=1).named_parameters())
    other = dict(build_backbone(config_of(architecture), seed=2).named_parameters())
    same_shape = [name for name in narrow if narrow[name].shape == wide[name].shape]
    assert len(same_shape) > len(narrow) // 2
    assert all(torch.equal(narrow[name], wide[name]) for name in same_shape)
    drawn = [name for name in narrow if narrow[name].std() > 0 and "embed_positions" not in name]  # sinusoids
    assert drawn
    assert not any(torch.equal(narrow[name], other[name]) for name in drawn)


def test_weights_have_the_architecture_s_scale(tiny) -> None:
    model = tiny("gpt2", hidden_size=128, num_hidden_layers=8)
    assert model.transformer.h[0].mlp.c_fc.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    # GPT-2 shrinks projections into the residual stream by sqrt(2 * layers).
    assert model.transformer.h[0].mlp.c_proj.weight.detach().std() == pytest.approx(0.02 / 4, rel=0.05)


def test_building_leaves_the_global_generator_alone_afterwards(config_of) -> None:
    """The same seed gives the same model wherever in a program it is built."""
    first = build_backbone(config_of("llama"), seed=3)
    torch.randn(17)
    second = build_backbone(config_of("llama"), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_embeddings_are_tied_when_asked(tiny) -> None:
    tied, free = tiny("llama"), tiny("llama", tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert free.lm_head.weight is not free.model.embed_tokens.weight


def test_key_value_heads_follow_attention_heads_unless_given(tiny) -> None:
    assert tiny("mistral").config.num_key_value_heads == 4
    assert tiny("mistral", num_key_value_heads=2).config.num_key_value_heads == 2


def test_sdpa_is_the_default_attention(tiny) -> None:
    assert tiny("llama").config._attn_implementation == "sdpa"
    assert tiny("llama", extra={"attn_implementation": "eager"}).config._attn_implementation == "eager"


def test_special_tokens_of_another_vocabulary_are_left_out(tiny) -> None:
    config = tiny("gpt2").config
    assert config.bos_token_id is None
    assert config.eos_token_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "lama"}, "unknown architecture 'lama'; did you mean 'llama'"),
        (
            {"architecture": "gpt2", "num_key_value_heads": 2},
            "num_key_value_heads=2: 'gpt2' has no such field",
        ),
        ({"extra": {"rope_thetas": 1}}, "'llama' has no field 'rope_thetas'"),
        ({"extra": {"head_dimm": 1}}, "did you mean 'head_dim'"),
        ({"hidden_size": 30}, "hidden size .30. is not a multiple of the number of attention heads"),
    ],
)
def test_mistakes_are_named(changes, message) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_backbone(BackboneConfig(**{"vocab_size": 97, **changes}))
    assert "\n" not in str(error.value)


def test_a_checkpoint_brings_its_own_shape(tiny, tmp_path) -> None:
    model = tiny("llama").bfloat16()
    model.save_pretrained(tmp_path / "plain")
    again = build_backbone(BackboneConfig(checkpoint=str(tmp_path / "plain"), hidden_size=999))
    assert again.dtype == torch.float32
    assert all(torch.equal(a, b.float()) for a, b in zip(again.parameters(), model.parameters()))
    ours = save(moeify(tiny("llama"), "smoe"), tmp_path / "ours")
    assert hasattr(build_backbone(BackboneConfig(checkpoint=str(ours))), "libmoe")


def test_the_shape_of_a_checkpoint_is_known_without_its_weights(tiny, tmp_path) -> None:
    tiny("llama").save_pretrained(tmp_path / "plain")
    save(moeify(tiny("llama"), "smoe", seed=0), tmp_path / "ours")
    for folder in (tmp_path / "plain", tmp_path / "ours"):
        whole = build_backbone(BackboneConfig(checkpoint=str(folder)))
        (folder / "model.safetensors").write_bytes(b"not read")
        with torch.device("meta"):
            shape = build_backbone(BackboneConfig(checkpoint=str(folder)))
        assert {p.device.type for p in shape.parameters()} == {"meta"}
        assert {n: p.shape for n, p in shape.named_parameters()} == {
            n: p.shape for n, p in whole.named_parameters()
        }


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        build_backbone(BackboneConfig(checkpoint=str(tmp_path / "nothing")))
