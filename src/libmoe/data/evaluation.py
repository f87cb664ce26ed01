"""Evaluation windows with exact byte counts, bits per byte, and the unigram baseline.

**Bits per byte.**  Tokenizers cut text into different numbers of tokens, so a loss per token says little by
itself.  The number that can be compared is the code length of the text per byte::

    bits per byte = (sum of -ln p over the predicted tokens) / ln 2 / (UTF-8 bytes those tokens stand for)

A model that gives every one of V tokens the same probability has ``log2(V) * tokens / bytes``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.loader import IGNORE, cut_windows
from libmoe.data.tokenized import TokenizedSplit

MODEL_INPUTS = ("input_ids", "labels", "position_ids")


def eval_windows(
    tokenized: TokenizedSplit, domain: str, seq_len: int, max_windows: int | None = None, batch_size: int = 16
) -> list[dict[str, torch.Tensor]]:
    """Cut one domain of a held-out split into windows that predict every text token exactly once.

    Windows follow one another and overlap by one token: the last token that one window predicts is the first
    context of the next.  The last window is moved back to be full, without predicting anything twice, so no
    padding is needed.  Documents are kept apart as in training (``position_ids``; call the model with
    ``use_cache=False``, see :class:`~libmoe.data.PackedLoader`); the first token of a document is predicted
    from bos, and bos and eos themselves are not predicted, since they are no text.

    Args:
        tokenized: the split, for example ``tokenized["test"]``.
        domain: its domain.
        seq_len: tokens per window (L); fewer if the whole stream is shorter.
        max_windows: keep at most this many windows, evenly spaced over the stream.
        batch_size: windows per batch (b); the last batch may be smaller.

    Returns:
        Batches with ``input_ids``, ``labels``, ``position_ids``, ``domain_ids`` (int64 [b, L]; the first three,
        ``MODEL_INPUTS``, are what a transformers model takes) and ``num_tokens``, ``num_bytes``, ``document``
        (int64 [b]): how many tokens the window predicts, how many bytes of text they stand for, and the number of
        the document that most of these bytes belong to.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len={seq_len} is too short; a window needs at least 2 tokens")
    if max_windows is not None and max_windows < 1:
        raise ConfigError(f"max_windows={max_windows} is not positive")
    stream = tokenized[domain]
    if not stream.num_documents:
        raise DataError(f"split {tokenized.name!r} has no document of domain {domain!r}")
    length = min(seq_len, stream.num_tokens)
    # A window predicts the length - 1 tokens after wanted, whether or not it starts there.
    wanted = np.arange(0, stream.num_tokens - 1, length - 1)
    starts = np.minimum(wanted, stream.num_tokens - length)
    if max_windows is not None and max_windows < len(starts):
        kept = np.linspace(0, len(starts) - 1, max_windows).round().astype(int)
        wanted, starts = wanted[kept], starts[kept]
    places = starts[:, None] + np.arange(length)
    predicted = stream.text_mask()[places] & (places > wanted[:, None])
    ids, positions = cut_windows(stream, stream.positions(), starts, length)
    bytes_WL = np.where(predicted, stream.byte_counts[places], 0)
    arrays = {
        "input_ids": ids,
        "labels": np.where(predicted, ids, IGNORE),
        "position_ids": positions,
        "domain_ids": np.full_like(ids, list(tokenized).index(domain)),
        "num_tokens": predicted.sum(axis=1),
        "num_bytes": bytes_WL.sum(axis=1, dtype=np.int64),
        "document": _main_document(stream.offsets, places, bytes_WL),
    }
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    cuts = range(0, len(ids), batch_size)
    return [{key: value[i : i + batch_size] for key, value in tensors.items()} for i in cuts]


def _main_document(offsets: np.ndarray, places: np.ndarray, bytes_WL: np.ndarray) -> np.ndarray:
    """The document of each window with most of its predicted bytes, int64 [W]; the first of equals."""
    document_WL = np.searchsorted(offsets, places, side="right") - 1
    first = document_WL[:, :1]
    bytes_WD = np.zeros((len(places), int((document_WL - first).max()) + 1))
    np.add.at(bytes_WD, (np.arange(len(places))[:, None], document_WL - first), bytes_WL)
    return first[:, 0] + bytes_WD.argmax(axis=1)


def bits_per_byte(nll: float, num_bytes: int) -> float:
    """Convert a summed negative log-likelihood in nats over text of ``num_bytes`` bytes to bits per byte."""
    return nll / math.log(2) / num_bytes


class UnigramEntropy(NamedTuple):
    """Bits per byte of the unigram model, by domain and over all held-out bytes."""

    domains: dict[str, float]
    overall: float


def unigram_entropy(train: TokenizedSplit, heldout: TokenizedSplit) -> UnigramEntropy:
    """Bits per byte of held-out text under the token frequencies of the training text.

    This is what a model reaches that has learned how common each token is (over all domains, with add-one
    smoothing) and nothing about context: a trained model must beat it clearly.
    """
    size = train.vocab_size
    counts = sum((np.bincount(s.ids[s.text_mask()], minlength=size) for s in train.values()), np.zeros(size))
    bits = -np.log2((counts + 1) / (counts.sum() + size))
    size_of = {domain: stream.num_bytes for domain, stream in heldout.items() if stream.num_bytes}
    if not size_of:
        raise DataError(f"split {heldout.name!r} holds no text")
    bits_of = {d: float(bits[heldout[d].ids[heldout[d].text_mask()]].sum()) for d in size_of}
    overall = sum(bits_of.values()) / sum(size_of.values())
    return UnigramEntropy({d: bits_of[d] / size_of[d] for d in size_of}, overall)
