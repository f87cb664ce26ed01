"""Shared real data: the embedded tokenizer and two small domains of the embedded pack."""

from __future__ import annotations

import pytest

from libmoe.data import TokenizedCorpus, load_corpus, load_tokenizer
from libmoe.data.corpus import Corpus
from libmoe.data.order import random_u64


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


@pytest.fixture(scope="session")
def hostile_texts() -> list[str]:
    """Texts that break tokenizers which are not lossless."""
    return [
        "",
        " ",
        "\n\n\t  leading and trailing  \r\n",
        "naïve café — “quotes” 日本語 العربية 🤖👩‍👩‍👧",
        "don't  can't ; , . ! ?",
        "text with <|endoftext|> and <|pad|> inside",
        "".join(chr(1 + v % 0xD7FF) for v in random_u64(2000, "characters")),
        "\x00\x01\x7f\ufeff\u200b",
    ]
