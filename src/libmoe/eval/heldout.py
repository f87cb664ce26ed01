"""Held-out bits per byte, by domain and by window."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe.core.context as context
from libmoe.core.errors import DataError
from libmoe.data import TokenizedCorpus, eval_windows, load_corpus, load_tokenizer
from libmoe.train.step import MODEL_INPUTS, side_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from libmoe.data import TokenizedSplit
    from libmoe.eval.heldout_rows import HeldRows
    from libmoe.train.recipe import DataConfig, Recipe

Windows = dict[str, list[dict[str, Tensor]]]


def open_data(data: DataConfig, progress: bool = False) -> tuple[TokenizedCorpus, PreTrainedTokenizerFast]:
    """The tokenized corpus of a recipe's ``data`` section (read from the cache after the first time)."""
    corpus = load_corpus(
        data.source, domains=data.domains, text_field=data.text_field, domain_field=data.domain_field
    )
    tokenizer = load_tokenizer(data.tokenizer)
    return TokenizedCorpus.build(corpus, tokenizer, progress=progress), tokenizer


def model_inputs(batch: Mapping[str, Tensor], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What of a batch the model reads, and the side inputs that routers and recorders may know."""
    inputs = {name: batch[name].to(device) for name in MODEL_INPUTS if name in batch}
    return inputs, {name: value.to(device) for name, value in side_inputs(batch).items()}


def token_nll(model: nn.Module, batch: Mapping[str, Tensor], **more: Any) -> Tensor:
    """``[B, L]`` negative log-likelihood in nats of each predicted token, 0 where nothing is predicted.

    Column l holds token l as predicted from the tokens before it.  ``more`` goes to the model as it is.
    """
    device = next(model.parameters()).device
    labels = batch["labels"].to(device)
    inputs, side = model_inputs(batch, device)
    with context.options(side=side):
        logits = model(**inputs, **more, use_cache=False).logits
    nll = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return F.pad(nll, (1, 0))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def summed(windows: Mapping[str, list[list[float]]], documents: Mapping[str, list[int]]) -> dict[str, Any]:
    """What a score is, see :meth:`HeldOut.score`, from bits and bytes of each window and the document it belongs to."""
    totals = {d: (sum(b for b, _ in rows), sum(n for _, n in rows)) for d, rows in windows.items()}
    return {
        "bits_per_byte": sum(b for b, _ in totals.values()) / sum(n for _, n in totals.values()),
        "domains": {d: b / n for d, (b, n) in totals.items()},
        "windows": dict(windows),
        "window_documents": dict(documents),
    }


class HeldOut:
    """Held-out windows of every domain, ready to be scored with any model.

    Args:
        split: a held-out split of a tokenized corpus.
        seq_len: tokens per window.
        per_domain: at most this many windows of each domain, evenly spaced; ``None`` for all.
        batch_size: windows per forward pass.

    Attributes:
        names: the split's domains; the side input ``domain`` of a forward pass holds numbers into this list.
        domains: those with held-out documents.

    Raises:
        DataError: the split holds no documents.
    """

    def __init__(
        self, split: TokenizedSplit, seq_len: int, per_domain: int | None = None, batch_size: int = 16
    ) -> None:
        self.names = list(split)
        self.domains = [d for d in self.names if split[d].num_documents]
        if not self.domains:
            raise DataError(
                f"the {split.name} split holds no documents, so nothing can be measured; add text to the corpus"
            )
        self.windows: Windows = {
            d: eval_windows(split, d, seq_len, per_domain, batch_size) for d in self.domains
        }

    def score(self, model: nn.Module, recorders: Sequence[Callable[..., None]] = ()) -> dict[str, Any]:
        """``{"bits_per_byte", "domains": {name: value}, "windows": {name: [[bits, bytes], ...]}, "window_documents"}``.

        ``window_documents`` is ``{name: [number, ...]}``: the held-out document of each window, of which windows
        depend on each other.  The overall number divides all bits by all bytes.  The model is left in its mode.
        """
        found: dict[str, list[list[float]]] = {}
        with evaluating(model), context.options(recorders=recorders):
            for domain, batches in self.windows.items():
                found[domain] = []
                for batch in batches:
                    bits = token_nll(model, batch).double().sum(1) / math.log(2)
                    found[domain] += [list(pair) for pair in zip(bits.tolist(), batch["num_bytes"].tolist())]
        documents = {
            d: [number for batch in batches for number in batch["document"].tolist()]
            for d, batches in self.windows.items()
        }
        return summed(found, documents)


def heldout_evaluator(recipe: Recipe) -> Callable[[nn.Module, int], dict[str, Any]]:
    """For the training loop: validation bits per byte on ``eval.validation_windows``, made when first called."""
    heldout: HeldOut | HeldRows | None = None

    def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
        nonlocal heldout
        if heldout is None and recipe.data.conversations is not None:
            from libmoe.eval.conversing import validation_rows

            heldout = validation_rows(recipe)
        if heldout is None:
            tokenized, _ = open_data(recipe.data)
            windows, rows = recipe.eval.validation_windows, recipe.eval.batch_size
            heldout = HeldOut(tokenized["validation"], recipe.data.seq_len, windows, rows)
        scored = heldout.score(model)
        return {"bits_per_byte": scored["bits_per_byte"], "domains": scored["domains"]}

    return evaluate
