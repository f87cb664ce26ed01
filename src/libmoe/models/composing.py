"""A vision-language model from an image encoder and a language model: LLaVA's layout, as transformers defines it.

The encoder's patches go through a connector (two linears with GELU between them) and take the places of an image token
in the text (LLaVA 1.5, arXiv 2310.03744).  Several encoders in one module are composed in the same way, each having a
connector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.models.encoders import VisionConfig, build_encoder, image_tokens
from libmoe.models.initialising import initialise
from libmoe.models.loading import load_any
from libmoe.models.parts import has_connector


@dataclass(frozen=True)
class ImageLayout:
    """How a vision-language model reads images.

    Attributes:
        size: height and width in pixels; ``patch``: of one patch (of several encoders, the first one's).
        tokens: places that an image takes in the text.
        class_token: the encoder has one; ``drops_class_token``: the text does not see it.
        source: where an image processor may be saved; ``None`` for an encoder that was drawn.
    """

    size: int
    patch: int
    tokens: int
    class_token: bool
    drops_class_token: bool
    source: str | None

    @property
    def beyond_grid(self) -> int:
        """Tokens that are made besides the patches of a square grid: a class token, or what further encoders make."""
        return self.tokens + self.drops_class_token - (self.size // self.patch) ** 2


def image_layout(vision: VisionConfig | None, checkpoint: str | None) -> ImageLayout:
    """Of an encoder that is to be composed, or of a vision-language model in ``checkpoint``; no weights are read.

    Raises:
        ConfigError: neither is there.
        CheckpointError: the checkpoint cannot be read.
    """
    with torch.device("meta"):
        if vision is None:
            return layout_of(None if checkpoint is None else load_any(checkpoint), checkpoint)
        encoder = build_encoder(vision, None)
        return _layout(encoder, not vision.class_token, vision.checkpoint)


def layout_of(model: Any, source: str | None) -> ImageLayout:
    """Of a vision-language model.

    Raises:
        ConfigError: it is none.
    """
    if model is None or not has_connector(model):
        raise ConfigError("conversations with images need backbone.vision, or a model that reads images")
    return _layout(model.model.vision_tower, model.config.vision_feature_select_strategy == "default", source)


def _layout(encoder: Any, drops: bool, source: str | None) -> ImageLayout:
    patches, has_class_token = image_tokens(encoder)
    tokens = patches + (has_class_token and not drops)
    config = encoder.config
    return ImageLayout(config.image_size, config.patch_size, tokens, has_class_token, has_class_token and drops, source)


def compose(
    encoder: Any, language: Any, image_token: int, *, class_token: bool = False, seed: int | None = 0
) -> nn.Module:
    """Join an encoder and a causal language model; the connectors' weights are drawn from ``seed``.

    Args:
        image_token: id in the text whose places the patches take; the embeddings must have a row for it.

    Raises:
        ConfigError: the language model has no such row, or is of a kind that transformers' LLaVA cannot hold.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.initialization import no_init_weights

    from libmoe.models.several_encoders import SeveralEncoders, SeveralEncodersForConditionalGeneration

    rows = language.get_input_embeddings().num_embeddings
    if not 0 <= image_token < rows:
        raise ConfigError(f"the image token {image_token} is outside the language model's {rows} embeddings")
    if not hasattr(language, "lm_head") or language.base_model is language:
        raise ConfigError(f"{type(language).__name__} is no causal language model that LLaVA can hold")
    patches, has_class_token = image_tokens(encoder)
    config = LlavaConfig(
        vision_config=encoder.config,
        text_config=language.config,
        image_token_index=image_token,
        image_seq_length=patches + (has_class_token and class_token),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if has_class_token and not class_token else "full",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"), no_init_weights():
        several = isinstance(encoder, SeveralEncoders)
        kind = SeveralEncodersForConditionalGeneration if several else LlavaForConditionalGeneration
        model: Any = kind(config)
    connector = type(model.model.multi_modal_projector)(config)
    model.model.vision_tower, model.model.language_model = encoder, language.base_model
    model.model.multi_modal_projector, model.lm_head = connector, language.lm_head
    if seed is not None:
        initialise(model, seed, inside="model.multi_modal_projector")
    model.tie_weights()
    return model.eval()
