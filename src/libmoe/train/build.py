"""From a recipe to data and a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.data import PackedLoader, TokenizedCorpus, eval_windows, load_corpus, load_tokenizer
from libmoe.data.phases import phases
from libmoe.experts import set_backend
from libmoe.layers import moe_layers
from libmoe.models import adapt, build_backbone, moeify
from libmoe.models.parts import has_connector
from libmoe.ops import AUTO
from libmoe.train.conversing import load_conversations
from libmoe.train.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from libmoe.data.vision.loader import ConversationLoader


@dataclass(frozen=True)
class TrainingData:
    """Batches by step, the tokenizer that made them, and a fingerprint of both text and tokenizer.

    ``processor`` makes text and images for a vision-language model; ``None`` for text alone.  ``probes`` are batches of
    each domain's training text, by which a mixture changes.
    """

    loader: PackedLoader | ConversationLoader
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    processor: Any = None
    probes: Mapping[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    @property
    def image_token(self) -> int | None:
        """Id in the text that stands for an image, for a model that reads images."""
        return None if self.processor is None else int(self.processor.image_token_id)


def load_data(recipe: Recipe, progress: bool = True, processes: int = 1) -> TrainingData:
    """The training split as packed batches; the order depends on the seed alone, never on the method.

    Args:
        processes: that train together.

    Raises:
        ConfigError: conversations that they cannot train on together.
        DataError: a missing or malformed source, domain or tokenizer.
    """
    data = recipe.data
    if data.conversations is not None:
        conversations, processor, fingerprint = load_conversations(recipe, progress, processes)
        return TrainingData(conversations, conversations.tokenizer, fingerprint, processor)
    corpus = load_corpus(
        data.source, domains=data.domains, text_field=data.text_field, domain_field=data.domain_field
    )
    tokenizer = load_tokenizer(data.tokenizer)
    tokenized = TokenizedCorpus.build(corpus, tokenizer, progress=progress)
    mixture, later = data.mixture, []
    if data.joins:
        sizes = {domain: stream.num_tokens for domain, stream in tokenized["train"].items()}
        (_, mixture), *later = phases(sizes, data.mixture, data.joins)
    loader = PackedLoader(
        tokenized["train"],
        seq_len=data.seq_len,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        mixture=mixture,
        document_mask=data.document_mask,
        unique_tokens=data.unique_tokens,
    )
    for step, weights in later:
        loader.remix(step, weights)
    probes = {}
    if data.reweight is not None:
        rows, size = data.reweight.windows, recipe.train.micro_batch_size or recipe.train.batch_size
        split = tokenized["train"]
        probes = {d: eval_windows(split, d, data.seq_len, rows, size) for d, share in loader.mixture.items() if share}
    return TrainingData(loader, tokenizer, tokenized.key, probes=probes)


def tokens_of(recipe: Recipe) -> tuple[int, int | None]:
    """Size of the vocabulary, and the id that stands for an image where the recipe trains on conversations."""
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if recipe.data.conversations is None:
        return len(tokenizer), None
    from libmoe.data.vision.tokens import image_token_id, with_image_token

    return len(with_image_token(tokenizer)), image_token_id(tokenizer)


def text_tokens(model: nn.Module, seq_len: int) -> int:
    """Tokens of text in a row of ``seq_len``, the rest being an image's, where the model reads images."""
    return seq_len - (getattr(model.config, "image_seq_length", 0) if has_connector(model) else 0)


def build_model(recipe: Recipe, vocab_size: int, image_token: int | None = None) -> nn.Module:
    """The backbone with its MoE layers; initial weights depend on the seed and on names alone.

    A checkpoint that has the recipe's MoE layers already, from an earlier stage, goes on with them.

    Args:
        image_token: id in the text that stands for an image, for a backbone that reads images.

    Raises:
        ConfigError: the backbone predicts no next token, has fewer embeddings than the tokenizer has tokens, or has
            other MoE layers than the recipe wants.
    """
    config = recipe.backbone
    if config.vocab_size is None:
        config = replace(config, vocab_size=vocab_size)
    if config.vision is not None and image_token is not None:
        config = replace(config, vision=replace(config.vision, image_token=image_token))
    model = build_backbone(config, seed=recipe.seed)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ConfigError(
            f"backbone {type(model).__name__} is not a causal language model, which is what train() trains; "
            "use 'llama', 'qwen3' or 'gpt2', or put MoE layers in with libmoe.models.moeify and use your own loop"
        )
    rows = model.get_input_embeddings().num_embeddings
    if rows < vocab_size:
        raise ConfigError(
            f"backbone.vocab_size={rows} is smaller than the tokenizer's {vocab_size} tokens; "
            "leave it out, or choose the tokenizer that belongs to the checkpoint"
        )
    method = recipe.method
    moeify(model, method.name, options=method.options, where=method.where, init=method.init, seed=recipe.seed)
    if recipe.peft is not None:
        adapt(model, recipe.peft, seed=recipe.seed)
    if recipe.train.backend != AUTO and list(moe_layers(model)):  # a dense model has nothing to choose
        set_backend(model, recipe.train.backend)
    return model
