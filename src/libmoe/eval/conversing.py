"""What a model of conversations with images is measured on: as a recipe says, or as its folder does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from libmoe.data import load_tokenizer
from libmoe.data.vision.emoji import manifest
from libmoe.data.vision.scenes.conversations import TASKS
from libmoe.data.vision.scenes.questions import questions
from libmoe.data.vision.template import ChatEncoder
from libmoe.eval.answers import HeldAnswers
from libmoe.eval.heldout import HeldOut
from libmoe.eval.heldout_rows import HeldRows
from libmoe.models.composing import ImageLayout, image_layout, layout_of
from libmoe.train.conversing import image_processor, open_source
from libmoe.train.recipe import ConversationConfig, DataConfig, EvalConfig, Recipe

Held = HeldOut | HeldAnswers | HeldRows
"""What can be scored: text, questions with choices, or conversations."""


def validation_rows(recipe: Recipe) -> HeldRows:
    """Conversations for curves and the best checkpoint: ``eval.validation_windows`` for each task there could be.

    Raises:
        DataError: the source is missing, or too small to hold any out.
    """
    config = _config(recipe.data)
    layout = image_layout(recipe.backbone.vision, recipe.backbone.checkpoint)
    wanted = recipe.eval.validation_windows * (1 if config.captions == "alone" else len(TASKS))
    return _rows("validation", layout, recipe.data, wanted, recipe.eval.batch_size)


def heldout_conversations(
    model: nn.Module, folder: str | Path, data: DataConfig, evaluation: EvalConfig
) -> tuple[Held, Any, str]:
    """What a model is measured on in the end, its tokenizer, and what tells this from others.

    Test questions for the embedded scenes; for their captions, and for other sources, rows that were held out.

    Args:
        folder: of the model, where its processor was saved.

    Raises:
        ConfigError: the model reads no images.
        DataError: the source is missing, or too small to hold any out.
    """
    config, number, size = _config(data), evaluation.windows_per_domain, evaluation.batch_size
    layout = layout_of(model, str(folder))
    if config.source != "scenes" or config.captions == "alone":
        wanted = number * (1 if config.captions == "alone" else len(TASKS))
        held = _rows("test", layout, data, wanted, size)
        return held, held.encoder.tokenizer, f"{config.source}:{config.captions}:{wanted}:{layout.tokens}"
    encoder, processor = _reader(layout, data, config)
    asked = questions(evaluation.scenes, config.tasks, number, size=layout.size)
    key = f"scenes:{evaluation.scenes}:{config.tasks}:{number}:{layout.size}:{layout.tokens}"
    return HeldAnswers(asked, encoder, processor, size), encoder.tokenizer, key


def conversation_facts(recipe: Recipe) -> dict[str, Any]:
    """What a report says of the data, as for text: fingerprint, tasks and licences; nothing is a baseline of all."""
    config = _config(recipe.data)
    layout = image_layout(recipe.backbone.vision, recipe.backbone.checkpoint)
    rows = open_source(config, 0, layout.size, progress=False)
    scenes = config.source == "scenes"
    return {
        "data": config.source,
        "data_fingerprint": rows.fingerprint,
        "domains": list(config.tasks or TASKS) if scenes and config.captions != "alone" else [],
        "licences": {name: facts["licence"] for name, facts in manifest()["packages"].items()} if scenes else {},
        "unigram_bits_per_byte": None,
        "unigram_by_domain": {},
    }


def _config(data: DataConfig) -> ConversationConfig:
    assert data.conversations is not None
    return data.conversations


def _rows(split: str, layout: ImageLayout, data: DataConfig, wanted: int, batch_size: int) -> HeldRows:
    config = _config(data)
    encoder, processor = _reader(layout, data, config)
    # Scenes have no rows for tests; others of the validation split, drawn with another seed, are as new.
    scenes = config.source == "scenes"
    rows = open_source(
        config, int(split == "test"), layout.size, split="validation" if scenes else split, progress=False
    )
    return HeldRows((rows.row(number) for number in range(min(wanted, len(rows)))), encoder, processor, batch_size)


def _reader(layout: ImageLayout, data: DataConfig, config: ConversationConfig) -> tuple[ChatEncoder, Any]:
    encoder = ChatEncoder(
        load_tokenizer(data.tokenizer), config.template, image_tokens=layout.tokens, max_length=data.seq_len
    )
    return encoder, image_processor(layout, config.aspect)
