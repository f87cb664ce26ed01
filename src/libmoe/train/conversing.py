"""From a recipe to batches of conversations with images, and to the processor that makes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import load_tokenizer
from libmoe.models.composing import ImageLayout, image_layout

if TYPE_CHECKING:
    from libmoe.data.vision.loader import ConversationLoader
    from libmoe.data.vision.rows import Conversations
    from libmoe.train.recipe import ConversationConfig, Recipe


def load_conversations(
    recipe: Recipe, progress: bool = True, processes: int = 1
) -> tuple[ConversationLoader, Any, str]:
    """Batches by step, the processor of text and images, and a fingerprint of all that decides the batches.

    Args:
        processes: that average gradients, and so must all use the encoder in each step.

    Raises:
        ConfigError: the backbone reads no images, Pillow is missing, or one of several processes could get rows of text
            alone.
        DataError: a missing or malformed source.
    """
    from libmoe.data.tokenizer import tokenizer_fingerprint
    from libmoe.data.vision.loader import ConversationLoader
    from libmoe.data.vision.tokens import with_image_token

    config = recipe.data.conversations
    assert config is not None
    layout = image_layout(recipe.backbone.vision, recipe.backbone.checkpoint)
    tokenizer = with_image_token(load_tokenizer(recipe.data.tokenizer))
    pixels = image_processor(layout, config.aspect)
    source = open_source(config, recipe.seed, layout.size, progress=progress)
    loader = ConversationLoader(
        source,
        tokenizer,
        config.template,
        pixels,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        max_length=recipe.data.seq_len,
        image_tokens=layout.tokens,
        group_by_length=config.group_by_length,
        progress=progress,
    )
    if processes > 1 and loader.mixed:
        raise ConfigError(
            f"data.conversations: some rows have no image, and {processes} processes that train together need one in "
            "each of their batches; leave the rows of text alone out, or train in one process"
        )
    fingerprint = f"{source.fingerprint}:{tokenizer_fingerprint(tokenizer)}:{config.template}:{layout.tokens}"
    return loader, processor(layout, pixels, loader.tokenizer), fingerprint


def open_source(
    config: ConversationConfig, seed: int, size: int, *, split: str = "train", progress: bool = True
) -> Conversations:
    """The rows of ``train``, ``validation`` or ``test`` that a recipe names; ``seed`` matters to ``scenes`` alone.

    Raises:
        ConfigError: options of scenes for another source.
        DataError: it is missing or malformed.
    """
    from libmoe.data.vision.llava import LlavaFile
    from libmoe.data.vision.named import NAMED, open_named
    from libmoe.data.vision.parts import Part
    from libmoe.data.vision.scenes.conversations import TASKS, SceneConversations

    if config.source == "scenes":
        tasks = TASKS if config.tasks is None else tuple(config.tasks)
        asked = config.captions == "last" and split != "train"  # what is measured are the answers
        return SceneConversations(split, seed, size, tasks, "none" if asked else config.captions, config.rows)
    if config.tasks is not None or config.captions != "none":
        raise ConfigError(f"data.conversations: tasks and captions belong to 'scenes', not to {config.source!r}")
    if config.source in NAMED:
        if config.images is None:
            raise DataError(f"data.conversations.images is missing: the folder that holds {config.source}")
        return Part(open_named(config.source, config.images, progress=progress), split)
    return Part(LlavaFile(config.source, config.images, progress=progress), split)


def image_processor(layout: ImageLayout, aspect: str) -> Any:
    """The encoder's own where one was saved with it, at the size that is read; else one of plain scaling."""
    from libmoe.data.vision.images import load_image_processor, make_image_processor

    if layout.source is None or (Path(layout.source).is_dir() and not _has_processor(Path(layout.source))):
        return make_image_processor(layout.size, aspect=aspect)
    saved = load_image_processor(layout.source)
    return make_image_processor(layout.size, tuple(saved.image_mean), tuple(saved.image_std), aspect)


def processor(layout: ImageLayout, pixels: Any, tokenizer: Any) -> Any:
    """Text and images together, as transformers' pipelines and evaluation harnesses take them."""
    from transformers import LlavaProcessor

    from libmoe.data.vision.rows import IMAGE

    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=layout.patch,
        vision_feature_select_strategy="default" if layout.drops_class_token else "full",
        num_additional_image_tokens=layout.beyond_grid,
        image_token=IMAGE,
    )


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
