"""Perplexity of text by domain: per byte, per token and per word, with intervals over documents."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from libmoe.core.errors import DataError
from libmoe.data import Corpus, TokenizedCorpus, TokenizedSplit, TokenStream, eval_windows, load_corpus
from libmoe.data.corpus import complete_splits
from libmoe.data.sources import read_local
from libmoe.eval.heldout import HeldOut, evaluating, token_nll
from libmoe.stats import Mean, clustered_mean

SEQ_LEN = 1024
"""Tokens per window at most, unless asked for more."""


@dataclass(frozen=True)
class Piece:
    """What one window predicts of one document."""

    domain: str
    document: int
    window: int
    bits: float
    tokens: int
    bytes: int
    words: int


@dataclass(frozen=True)
class Perplexity:
    """Code lengths of a text; the perplexity per unit is two to the power of its bits.

    A word is a run of characters without ASCII white space, and counts with its first byte.
    """

    bits_per_byte: Mean
    bits_per_token: Mean
    bits_per_word: Mean
    tokens: int
    bytes: int
    words: int

    @property
    def token_perplexity(self) -> float:
        return 2.0**self.bits_per_token.value

    @property
    def word_perplexity(self) -> float:
        return 2.0**self.bits_per_word.value


@dataclass(frozen=True)
class Perplexities:
    """Perplexity of all text and of each domain, and the pieces they are made of."""

    overall: Perplexity
    domains: dict[str, Perplexity]
    pieces: list[Piece]
    seq_len: int


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    source: str | Path = "embedded",
    *,
    split: str | None = None,
    domains: Sequence[str] | None = None,
    text_field: str = "text",
    domain_field: str | None = None,
    seq_len: int | None = None,
    per_domain: int | None = None,
    batch_size: int = 16,
    cluster: Literal["document", "window"] = "document",
) -> Perplexities:
    """Perplexity of ``model`` on text, through the windows of :class:`libmoe.eval.HeldOut`.

    Args:
        source: ``"embedded"``, a local file or folder (text, JSONL, parquet), or ``"hf:NAME"``; see
            :func:`libmoe.data.load_corpus`, which has ``domains``, ``text_field`` and ``domain_field`` too.
        split: ``None``: the test split of a source that has splits, else all of its text.
        seq_len: tokens per window; ``None``: as many as the model has positions for, up to 1024.
        per_domain: at most this many windows of each domain, evenly spaced; ``None`` for all.
        cluster: what is drawn at random for the intervals.  Windows of one document depend on each other; take
            windows only where there are too few documents.

    Raises:
        DataError: the source cannot be read or holds no text.
    """
    corpus = read_text(source, split, domains, text_field, domain_field)
    (split_name,) = corpus.splits
    tokenized = TokenizedCorpus.build(corpus, tokenizer, progress=False)[split_name]
    if seq_len is None:
        seq_len = min(getattr(model.config, "max_position_embeddings", None) or SEQ_LEN, SEQ_LEN)
    heldout = HeldOut(tokenized, seq_len, per_domain, batch_size)
    pieces: list[Piece] = []
    for domain in heldout.domains:
        places = _places(tokenized, domain, seq_len, per_domain, batch_size)
        words = word_starts(tokenized[domain], corpus[split_name][domain])
        pieces += _score(model, heldout, domain, tokenized[domain], places, words)
    by_domain = {d: _summary([p for p in pieces if p.domain == d], cluster) for d in heldout.domains}
    return Perplexities(_summary(pieces, cluster), by_domain, pieces, seq_len)


def read_text(
    source: str | Path,
    split: str | None = None,
    domains: Sequence[str] | None = None,
    text_field: str = "text",
    domain_field: str | None = None,
) -> Corpus:
    """A corpus with one split to be measured; local text without splits is measured whole."""
    name = str(source)
    if name == "embedded" or name.startswith("hf:"):
        return load_corpus(
            source, split=split or "test", domains=domains, text_field=text_field, domain_field=domain_field
        )
    found = read_local(Path(source).expanduser(), text_field, domain_field)
    wanted = split or ("test" if "test" in found else "train")
    if wanted not in found:
        raise DataError(f"{name!r} has the splits {', '.join(found)}, not {wanted!r}; give split=")
    corpus = Corpus(name, complete_splits({"test": found[wanted]}, name, heldout=0.05))
    return corpus.select(domains) if domains is not None else corpus


def word_starts(stream: TokenStream, documents: Sequence[str]) -> np.ndarray:
    """How many words begin in each token, int64 [tokens]."""
    counts = np.zeros(stream.num_tokens, dtype=np.int64)
    for document, text in enumerate(documents):
        first, last = stream.offsets[document] + 1, stream.offsets[document + 1] - 1
        ends = np.cumsum(stream.byte_counts[first:last])
        starts = [match.start() for match in re.finditer(rb"\S+", text.encode())]
        np.add.at(counts, first + np.searchsorted(ends, starts, side="right"), 1)
    return counts


def _places(
    split: TokenizedSplit, domain: str, seq_len: int, per_domain: int | None, batch_size: int
) -> list[np.ndarray]:
    """Where in the stream each token of each window comes from: the same windows cut out of numbers."""
    stream = split[domain]
    numbers = replace(stream, ids=np.arange(stream.num_tokens))
    windows = eval_windows(replace(split, streams={domain: numbers}), domain, seq_len, per_domain, batch_size)
    return [batch["input_ids"].numpy() for batch in windows]


def _score(
    model: nn.Module,
    heldout: HeldOut,
    domain: str,
    stream: TokenStream,
    places: list[np.ndarray],
    words: np.ndarray,
) -> list[Piece]:
    pieces: list[Piece] = []
    first = 0
    with evaluating(model):
        for batch, place in zip(heldout.windows[domain], places, strict=True):
            bits = token_nll(model, batch).double().cpu().numpy() / math.log(2)
            predicted = batch["labels"].numpy() != -100
            for row in range(len(place)):
                mine = place[row][predicted[row]]
                document = np.searchsorted(stream.offsets, mine, side="right") - 1
                for number in np.unique(document):
                    here = mine[document == number]
                    pieces.append(
                        Piece(
                            domain,
                            int(number),
                            first + row,
                            float(bits[row][predicted[row]][document == number].sum()),
                            len(here),
                            int(stream.byte_counts[here].sum()),
                            int(words[here].sum()),
                        )
                    )
            first += len(place)
    return pieces


def _summary(pieces: list[Piece], cluster: str) -> Perplexity:
    bits, tokens, size, words = (
        np.array([getattr(piece, key) for piece in pieces], dtype=np.float64)
        for key in ("bits", "tokens", "bytes", "words")
    )
    clusters = [(piece.domain, getattr(piece, cluster)) for piece in pieces]
    per_byte, per_token, per_word = (_rate(bits, units, clusters) for units in (size, tokens, words))
    return Perplexity(per_byte, per_token, per_word, int(tokens.sum()), int(size.sum()), int(words.sum()))


def _rate(bits: np.ndarray, units: np.ndarray, clusters: Sequence[tuple[str, int]]) -> Mean:
    """Bits per unit: a ratio of two sums, with the clustered error of its linearisation (delta method)."""
    if not units.sum():
        return Mean(math.nan, math.nan, math.nan, math.nan, len(bits), len(set(clusters)))
    rate = bits.sum() / units.sum()
    return clustered_mean(rate + (bits - rate * units) / units.mean(), clusters)
