"""Find text that occurs twice: the check that keeps held-out data clean.

A model that has seen a held-out sentence during training is measured on its memory.  The test used here is
the usual one: *does any window of ``width`` characters of the held-out text also occur in the training
text?*  All windows of a text are hashed at once with a rolling polynomial hash modulo 2^64 (Karp and Rabin,
1987), so that megabytes are compared in well under a second with nothing but numpy.

White space is collapsed and case folded first: a sentence that was only re-wrapped is still the same
sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from libmoe.data.order import random_u64

_BASE = 0x9E3779B97F4A7C15  # odd, hence invertible modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_BYTE_VALUES = random_u64(256, "overlap")


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, dtype=np.uint64)
    if count:
        powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def window_hashes(text: str, width: int) -> np.ndarray:
    """Return the 64-bit hash of every window of ``width`` bytes of the normalised text, shape [windows].

    A text shorter than ``width`` has no window.
    """
    data = np.frombuffer(" ".join(text.split()).casefold().encode("utf-8", "replace"), dtype=np.uint8)
    if len(data) < width:
        return np.empty(0, dtype=np.uint64)
    # prefix[i] = sum of value[j] * base^j for j < i; a window's hash is its slice of that sum, moved to base^0.
    prefix = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(_BYTE_VALUES[data] * _powers(_BASE, len(data)), out=prefix[1:], dtype=np.uint64)
    return (prefix[width:] - prefix[:-width]) * _powers(_INVERSE, len(data) - width + 1)


def overlaps(documents: Sequence[str], reference: Sequence[str], width: int = 200) -> list[bool]:
    """Say for each document whether it shares any window of ``width`` bytes with the reference texts."""
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *(window_hashes(r, width) for r in reference)]))
    return [_any_in(window_hashes(text, width), known) for text in documents]


def _any_in(hashes: np.ndarray, known: np.ndarray) -> bool:
    """Whether any hash is in ``known``, which is sorted (far faster here than numpy.isin, which is not told)."""
    places = np.searchsorted(known, hashes)
    return bool((known[np.minimum(places, len(known) - 1)] == hashes).any()) if len(known) else False


def shares_text(documents: Sequence[str], width: int = 200) -> list[bool]:
    """Say for each document whether it shares any window of ``width`` bytes with any other one."""
    hashes = [np.unique(window_hashes(text, width)) for text in documents]
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
    shared = values[counts > 1]
    return [_any_in(h, shared) for h in hashes]


def repeated_fraction(documents: Sequence[str], width: int = 50) -> list[float]:
    """Return for each document the fraction of its windows that an *earlier* document already holds.

    Near-duplicates (the same licence under another name, a page printed twice) come out close to 1.
    """
    hashes = [np.unique(window_hashes(text, width)) for text in documents]
    owner = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
    flat = np.concatenate([np.empty(0, np.uint64), *hashes])
    order = np.argsort(flat, kind="stable")  # stable: equal hashes stay in document order
    repeated = np.zeros(len(flat), dtype=bool)
    repeated[order[1:]] = flat[order[1:]] == flat[order[:-1]]
    counts = np.bincount(owner, weights=repeated, minlength=len(hashes))
    return [float(c) / max(1, len(h)) for c, h in zip(counts, hashes, strict=True)]
