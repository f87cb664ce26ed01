"""Backbones: dense transformers models, from a configuration with seeded weights or from a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from libmoe.core.errors import ConfigError, nearest, unknown
from libmoe.models.composing import compose
from libmoe.models.encoders import VisionConfig, build_encoder
from libmoe.models.initialising import initialise
from libmoe.models.loading import load_any, model_class

# What architectures call the same thing; all that an architecture knows are set, so that an encoder-decoder gets
# both of its sides.
_NAMES = {
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim"),
    "num_hidden_layers": (
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "n_layers",
        "num_decoder_layers",
        "encoder_layers",
        "decoder_layers",
    ),
    "intermediate_size": (
        "intermediate_size",
        "n_inner",
        "d_ff",
        "ffn_dim",
        "ffn_hidden_size",
        "hidden_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    "num_attention_heads": (
        "num_attention_heads",
        "num_heads",
        "n_head",
        "n_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ),
    "num_key_value_heads": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_target_positions"),
    "tie_word_embeddings": ("tie_word_embeddings",),
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_MORE_KEYS = ("num_labels", "attn_implementation", "decoder_start_token_id")
_HEADS = {"mlp_mixer": "MlpMixerForImageClassification", "vit_mae": "ViTMAEForPreTraining"}
"""The usual head of architectures that transformers does not have, or lists under none of the tasks below."""


@dataclass
class BackboneConfig:
    """A dense model.

    Attributes:
        architecture: transformers' name of it (``llama``, ``qwen3``, ``gpt2``, ``bert``, ``vit``, ``t5``, ...), or
            ``mlp_mixer`` (:mod:`libmoe.models.mlp_mixer`).
        hidden_size, num_hidden_layers, num_attention_heads: its shape.
        intermediate_size: hidden width of the FFNs; ``None`` for four times ``hidden_size``.
        num_key_value_heads: ``None`` for as many as attention heads.
        vocab_size: ``None`` for the tokenizer's.
        max_position_embeddings: longest sequence; ``None`` leaves the architecture's own.
        tie_word_embeddings: one matrix for input and output embeddings.
        extra: further fields of the architecture's configuration, ``num_labels`` or ``attn_implementation``.
        checkpoint: a model folder or a name on the hub.  It brings its own shape, and all fields above are
            left unused.
        vision: an image encoder, which makes a vision-language model of it (LLaVA); all fields above are then the
            language model's.
    """

    architecture: str = "llama"
    hidden_size: int = 256
    num_hidden_layers: int = 4
    intermediate_size: int | None = None
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    vision: VisionConfig | None = None


def build_backbone(config: BackboneConfig, seed: int | None = 0) -> nn.Module:
    """The model: with a language-model head where the architecture has one, else a classifier, else bare.

    Weights of a module depend on ``seed``, the module's name and its shape alone, so that models that differ in
    one part are equal in the others.  ``seed=None`` leaves initialisation to transformers.  A checkpoint is
    loaded in float32.

    Raises:
        ConfigError: unknown architecture or field (with the nearest one), or a shape it cannot have.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if config.vision is not None:
        language: Any = build_backbone(replace(config, vision=None), seed)
        if config.vocab_size is not None and config.vocab_size > language.get_input_embeddings().num_embeddings:
            language.resize_token_embeddings(config.vocab_size, mean_resizing=False)
        encoder, image_token = build_encoder(config.vision, seed), config.vision.image_token
        if image_token is None:
            image_token = language.get_input_embeddings().num_embeddings - 1
        return compose(encoder, language, image_token, class_token=config.vision.class_token, seed=seed)
    if config.checkpoint is not None:
        return load_any(config.checkpoint, dtype=torch.float32)
    from transformers import CONFIG_MAPPING

    from libmoe.models import mlp_mixer_config  # noqa: F401 - makes its kind known

    if config.architecture not in CONFIG_MAPPING:
        raise unknown("architecture", config.architecture, CONFIG_MAPPING)
    config_class = CONFIG_MAPPING[config.architecture]
    attention = config.extra.get("attn_implementation")  # None: transformers takes sdpa where there is one
    try:
        settings = config_class(**_settings(config, config_class))
        if settings.is_encoder_decoder and getattr(settings, "decoder_start_token_id", None) is None:
            settings.decoder_start_token_id = settings.pad_token_id or 0  # T5 starts from padding
        model = model_class(_class_name(config.architecture))._from_config(
            settings, attn_implementation=attention
        )
    except ConfigError:
        raise
    except Exception as error:  # whatever an architecture's constructor thinks of its numbers
        raise ConfigError(f"backbone {config.architecture!r}: {' '.join(str(error).split())[:300]}") from None
    if seed is not None and model.device.type != "meta":
        initialise(model, seed)
    return model


def _settings(config: BackboneConfig, config_class: Any) -> dict[str, Any]:
    known = {name: value for name, value in config_class().to_dict().items() if name != "model_type"}
    settings: dict[str, Any] = {}
    for option in fields(config):
        if option.name in _NAMES:
            names = [name for name in _NAMES[option.name] if name in known]
            value = getattr(config, option.name)
            if not names and value != option.default:
                raise ConfigError(
                    f"backbone.{option.name}={value}: {config.architecture!r} has no such field"
                )
            settings |= dict.fromkeys(names, value) if value is not None else {}
    heads = config.num_attention_heads
    derived = {
        "num_key_value_heads": heads,
        "head_dim": config.hidden_size // heads,
        "d_kv": config.hidden_size // heads,
        **dict.fromkeys(_NAMES["intermediate_size"], 4 * config.hidden_size),
    }
    settings = {name: value for name, value in derived.items() if name in known} | settings
    _check_extra(config, {*known, *config_class.attribute_map, *_MORE_KEYS})
    vocab_size = settings.get("vocab_size")
    for name in _SPECIAL_TOKENS:
        if vocab_size is not None and isinstance(known.get(name), int) and known[name] >= vocab_size:
            settings[name] = None  # the architecture's default is a token of another vocabulary
    return settings | {k: v for k, v in config.extra.items() if k != "attn_implementation"}


def _check_extra(config: BackboneConfig, known: Collection[str]) -> None:
    for name in config.extra:
        if name not in known:
            guess = nearest(name, known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"backbone.extra: {config.architecture!r} has no field {name!r}{hint}")


def _class_name(architecture: str) -> str:
    from transformers.models.auto import modeling_auto as auto

    for mapping in (
        _HEADS,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    ):
        if architecture in mapping:
            names = mapping[architecture]
            return names if isinstance(names, str) else names[0]
    raise ConfigError(f"transformers has a configuration for {architecture!r} but no model")
