"""A small language model that has read some real text of four domains, trained once for all tests of a process."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.data import Corpus, PackedLoader, TokenizedCorpus, eval_windows, load_corpus, load_tokenizer
from libmoe.train.build import build_model
from libmoe.train.recipe import load_recipe

DOMAINS = ["novel", "code", "legal", "math"]


@functools.cache
def corpus() -> TokenizedCorpus:
    full = load_corpus("embedded", domains=DOMAINS)
    few = {split: {d: texts[:60] for d, texts in documents.items()} for split, documents in full.splits.items()}
    return TokenizedCorpus.build(Corpus("few", few), load_tokenizer("embedded"), progress=False)


@functools.cache
@torch.enable_grad()
def _weights(steps: int, options: tuple[str, ...]) -> dict[str, Tensor]:
    model = _model(options).train()
    loader = PackedLoader(corpus()["train"], seq_len=64, batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        summed_loss(model, loader.batch(step)).div(8 * 63).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.state_dict()


def _model(options: tuple[str, ...]) -> nn.Module:
    return build_model(load_recipe("tiny", options), len(load_tokenizer("embedded")))


def trained_lm(steps: int = 200, **options: Any) -> nn.Module:
    """A fresh copy of it, in evaluation mode; ``options`` are keys of the recipe with ``__`` for dots."""
    given = tuple(f"{key.replace('__', '.')}={value}" for key, value in sorted(options.items()))
    model = _model(given)
    model.load_state_dict(_weights(steps, given))
    return model.eval()


def summed_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Summed cross-entropy in nats."""
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    labels = batch["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum")


def windows(domain: str, number: int, split: str = "test", seq_len: int = 64) -> list[dict[str, Tensor]]:
    """Held-out text, in one batch."""
    return eval_windows(corpus()[split], domain, seq_len, number, batch_size=number)
