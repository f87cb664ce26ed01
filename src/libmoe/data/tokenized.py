"""A corpus encoded once, kept on disk, and laid out as one token stream per domain."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from libmoe.core.errors import DataError, nearest
from libmoe.core.files import write_atomically
from libmoe.data.corpus import Corpus
from libmoe.data.files import cache_dir as default_cache_dir
from libmoe.data.tokenizer import document_tokens, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = "1"  # part of the cache key: raise it when the layout below changes
_BATCH = 256  # documents encoded per call; bounds memory and lets progress move


@dataclass(frozen=True, eq=False)
class TokenStream:
    """The documents of one domain of one split, one after another.

    Every document is stored as ``bos, text tokens, eos`` (with the embedded tokenizer both are
    ``<|endoftext|>``): the first text token is predicted from ``bos``, as evaluation harnesses do, and ``eos``
    teaches the model to stop.

    Attributes:
        ids: int32 [tokens].
        byte_counts: int32 [tokens], UTF-8 bytes of text that each token stands for (0 for bos and eos).  Over
            a document they add up to its exact size.  A character cut into several tokens counts with the
            first of them.
        offsets: int64 [documents + 1], where each document starts in ``ids``.
    """

    ids: np.ndarray
    byte_counts: np.ndarray
    offsets: np.ndarray

    @property
    def num_tokens(self) -> int:
        """All tokens, with the two that frame each document."""
        return len(self.ids)

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_bytes(self) -> int:
        return int(self.byte_counts.sum(dtype=np.int64))

    def positions(self) -> np.ndarray:
        """Place of each token in its document, int32 [tokens]; 0 at every bos."""
        starts = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return (np.arange(len(self.ids)) - starts).astype(np.int32)

    def text_mask(self) -> np.ndarray:
        """Which tokens are text (neither bos nor eos), bool [tokens]."""
        mask = np.ones(len(self.ids), dtype=bool)
        mask[self.offsets[:-1]] = False
        mask[self.offsets[1:] - 1] = False
        return mask


@dataclass(frozen=True, eq=False)
class TokenizedSplit(Mapping[str, TokenStream]):
    """One split of a tokenized corpus: an ordered mapping from domain to :class:`TokenStream`."""

    name: str
    streams: dict[str, TokenStream]
    vocab_size: int

    def __getitem__(self, domain: str) -> TokenStream:
        if domain not in self.streams:
            guess = nearest(domain, self.streams)
            hint = f"did you mean {guess!r}?" if guess else f"choose from: {', '.join(self.streams)}"
            raise DataError(f"no domain {domain!r} in split {self.name!r}; {hint}")
        return self.streams[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)


class TokenizedCorpus:
    """All splits of a corpus as tokens: ``tokenized["train"]["novel"]`` is a :class:`TokenStream`.

    Built by :meth:`build`, which keeps the result on disk.  ``key`` names the content (corpus and tokenizer).
    """

    def __init__(self, splits: dict[str, TokenizedSplit], key: str) -> None:
        self.splits = splits
        self.key = key

    def __getitem__(self, split: str) -> TokenizedSplit:
        if split not in self.splits:
            raise DataError(f"the tokenized corpus has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    @property
    def domains(self) -> list[str]:
        return list(next(iter(self.splits.values())))

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerFast,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> TokenizedCorpus:
        """Encode a corpus, or read it back if the same corpus and tokenizer were seen before.

        The cache file lies under ``cache_dir`` (default ``$LIBMOE_CACHE`` or ``~/.cache/libmoe``).  Several
        processes may build it at once: each writes a whole file of its own and renames it.  A damaged file is
        rebuilt; a folder that cannot be written costs only the time to encode again.  Both are warned about.
        """
        key = hashlib.sha256(
            "\n".join((_FORMAT, corpus.fingerprint(), tokenizer_fingerprint(tokenizer))).encode()
        ).hexdigest()
        file = default_cache_dir(cache_dir) / "tokens" / f"{key[:32]}.npz"
        names = [(split, domain) for split in corpus.splits for domain in corpus.domains]
        streams = _read(file, len(names))
        if streams is None:
            streams = _encode(corpus, tokenizer, names, progress)
            try:
                write_atomically(file, _to_bytes(streams))
            except OSError as error:
                warnings.warn(
                    f"tokens are not cached ({error}); set LIBMOE_CACHE to a writable folder", stacklevel=2
                )
        named = dict(zip(names, streams, strict=True))
        splits = {
            split: TokenizedSplit(split, {d: named[split, d] for d in corpus.domains}, len(tokenizer))
            for split in corpus.splits
        }
        return cls(splits, key)


def _read(file: Path, count: int) -> list[TokenStream] | None:
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return [
                TokenStream(*(arrays[f"{i}.{f}"] for f in ("ids", "bytes", "offsets"))) for i in range(count)
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"the token cache {file} is damaged ({error}) and is built anew", stacklevel=3)
        return None


def _to_bytes(streams: Sequence[TokenStream]) -> bytes:
    arrays = {}
    for i, stream in enumerate(streams):
        arrays.update(
            {f"{i}.ids": stream.ids, f"{i}.bytes": stream.byte_counts, f"{i}.offsets": stream.offsets}
        )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _encode(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, names: Sequence[tuple[str, str]], progress: bool
) -> list[TokenStream]:
    from tqdm import tqdm

    total = sum(len(corpus[split][domain]) for split, domain in names)
    # delay: a bar only where the work takes long enough to wonder.
    with tqdm(total=total, desc="tokenizing", unit="doc", delay=2.0, disable=not progress) as bar:
        return [encode_documents(corpus[split][domain], tokenizer, bar.update) for split, domain in names]


def encode_documents(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    advance: Callable[[int], object] = lambda n: None,
) -> TokenStream:
    """Encode documents into one stream; ``advance(n)`` is called after every n documents."""
    from tokenizers import Tokenizer

    bos, eos = document_tokens(tokenizer)
    # A private copy: text that spells a special token must stay text, but the caller's tokenizer is not changed.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    ids: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for start in range(0, len(documents), _BATCH):
        batch = list(documents[start : start + _BATCH])
        for text, encoding in zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True):
            ids.append(np.array([bos, *encoding.ids, eos], dtype=np.int32))
            counts.append(np.concatenate([[0], _byte_counts(text, encoding.offsets), [0]]).astype(np.int32))
        advance(len(batch))
    empty = np.empty(0, dtype=np.int32)
    return TokenStream(
        np.concatenate([empty, *ids]),
        np.concatenate([empty, *counts]),
        np.cumsum([0, *(len(document) for document in ids)], dtype=np.int64),
    )


def _byte_counts(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes per token from the (start, end) characters that the tokenizer reports.

    Only the ends are used: a token owns everything since the end of the one before it, so text that a
    tokenizer drops or normalises away is still counted, and the last token owns what is left.
    """
    if not offsets:
        return np.empty(0, dtype=np.int64)
    ends = np.fromiter((end for _, end in offsets), dtype=np.int64, count=len(offsets))
    ends = np.maximum.accumulate(ends)
    ends[-1] = len(text)
    if not text.isascii():
        code = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        width = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)
        ends = np.concatenate([[0], np.cumsum(width)])[ends]
    return np.diff(ends, prepend=0)
