"""A vision-language model from an image encoder and a language model: LLaVA's layout, as transformers defines it.

The encoder's patches go through a connector (two linears with GELU between them) and take the places of an image token
in the text (LLaVA 1.5, arXiv 2310.03744).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.models.encoders import image_tokens
from libmoe.models.initialising import initialise


def compose(
    encoder: Any, language: Any, image_token: int, *, class_token: bool = False, seed: int | None = 0
) -> nn.Module:
    """Join an encoder and a causal language model; the connector's weights are drawn from ``seed``.

    Args:
        image_token: id in the text whose places the patches take; the embeddings must have a row for it.

    Raises:
        ConfigError: the language model has no such row, or is of a kind that transformers' LLaVA cannot hold.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.initialization import no_init_weights

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
        model: Any = LlavaForConditionalGeneration(config)
    connector = type(model.model.multi_modal_projector)(config)
    model.model.vision_tower, model.model.language_model = encoder, language.base_model
    model.model.multi_modal_projector, model.lm_head = connector, language.lm_head
    if seed is not None:
        initialise(model, seed, inside="model.multi_modal_projector")
    model.tie_weights()
    return model.eval()
