"""A LLaVA of random weights with its processor, small enough to be asked in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from libmoe.data import load_tokenizer

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PATCH, WIDTH = 14, 32


def save_llava(
    folder: Path,
    size: int,
    *,
    words: Sequence[str] = (),
    positions: int = 512,
    chat: str = CHAT,
    edit: Callable[[Any, Any], None] = lambda model, tokenizer: None,
) -> Path:
    """Save one that reads images of ``size`` x ``size`` pixels; its matrices are large, so that what it sees matters.

    Args:
        words: tokens of their own.
        positions: of the language model.
        edit: changes the model before it is saved; given the tokenizer too.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = load_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_tokens(list(words))
    end = tokenizer.eos_token_id
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=size, patch_size=PATCH, **sizes),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=positions, eos_token_id=end, bos_token_id=end,
            pad_token_id=tokenizer.pad_token_id, **sizes,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
        edit(model, tokenizer)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
