"""Shared real data: the embedded tokenizer and two small domains of the embedded pack."""

from __future__ import annotations

import pytest

from libmoe.data import TokenizedCorpus, load_corpus, load_tokenizer
from libmoe.data.corpus import Corpus


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("embedded")


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Two domains of unequal size, all splits, a few hundred kB."""
    full = load_corpus("embedded", domains=["novel", "legal"])
    splits = {
        split: {"novel": documents["novel"][:20], "legal": documents["legal"][:12]}
        for split, documents in full.splits.items()
    }
    return Corpus("small", splits)


@pytest.fixture(scope="session")
def tokenized(corpus, tokenizer, tmp_path_factory) -> TokenizedCorpus:
    return TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path_factory.mktemp("cache"))
