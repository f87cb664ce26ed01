"""Data: real text that is always at hand, and batches whose order never depends on the method.

The path of a training run through this package::

    corpus = load_corpus("embedded")                        # documents by split and domain
    tokenizer = load_tokenizer("embedded")                  # byte-level BPE, 2,048 tokens
    tokenized = TokenizedCorpus.build(corpus, tokenizer)    # token streams, cached on disk
    loader = PackedLoader(tokenized["train"], seq_len=256, batch_size=32, seed=0)
    batch = loader.batch(step)                              # the same for every method and process count
    windows = eval_windows(tokenized["test"], "novel", seq_len=256)

Names are imported when first used, so ``import libmoe.data`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

if TYPE_CHECKING:
    from libmoe.data.corpus import Corpus, load_corpus
    from libmoe.data.evaluation import (
        MODEL_INPUTS,
        UnigramEntropy,
        bits_per_byte,
        eval_windows,
        unigram_entropy,
    )
    from libmoe.data.files import cache_dir
    from libmoe.data.loader import PackedLoader
    from libmoe.data.overlap import overlaps
    from libmoe.data.tasks import TASKS, task_dir
    from libmoe.data.tokenized import TokenizedCorpus, TokenizedSplit, TokenStream
    from libmoe.data.tokenizer import load_tokenizer, train_tokenizer

_HOMES = {
    "MODEL_INPUTS": "evaluation",
    "TASKS": "tasks",
    "Corpus": "corpus",
    "PackedLoader": "loader",
    "TokenStream": "tokenized",
    "TokenizedCorpus": "tokenized",
    "TokenizedSplit": "tokenized",
    "UnigramEntropy": "evaluation",
    "bits_per_byte": "evaluation",
    "cache_dir": "files",
    "eval_windows": "evaluation",
    "load_corpus": "corpus",
    "load_tokenizer": "tokenizer",
    "overlaps": "overlap",
    "task_dir": "tasks",
    "train_tokenizer": "tokenizer",
    "unigram_entropy": "evaluation",
}

__all__ = [
    "MODEL_INPUTS",
    "TASKS",
    "Corpus",
    "PackedLoader",
    "TokenStream",
    "TokenizedCorpus",
    "TokenizedSplit",
    "UnigramEntropy",
    "bits_per_byte",
    "cache_dir",
    "eval_windows",
    "load_corpus",
    "load_tokenizer",
    "overlaps",
    "task_dir",
    "train_tokenizer",
    "unigram_entropy",
]

__getattr__, __dir__ = on_demand(__name__, _HOMES)
