"""Cut long texts into documents, and assign documents to train, validation and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")

# Strongest border first: a blank line before an unindented line (a paragraph, a top-level definition), any
# blank line, a line break, the end of a sentence, a space.
_PATTERNS = (r"\n\s*\n(?=\S)", r"\n\s*\n", r"\n", r"(?<=[.!?])[\"'”’)]*\s", r"\s")
_BORDERS = tuple(re.compile(pattern) for pattern in _PATTERNS)


def split_document(text: str, max_chars: int = 6000) -> list[str]:
    """Cut ``text`` into pieces of about equal size, on average at most ``max_chars`` characters.

    Each cut is made at the strongest border near its ideal place, so a piece may be up to 1.7 times the
    average; only white space at a cut is lost.  Text without any border (one endless word) is not cut.
    """
    text = text.strip("\n")
    count = -(-len(text) // max_chars)
    if count <= 1:
        return [text] if text.strip() else []
    cuts, size = [0], len(text) / count
    for i in range(1, count):
        low, high = int((i - 0.35) * size), int((i + 0.35) * size)
        for border in _BORDERS:
            distances = [(abs(m.end() - i * size), m.end()) for m in border.finditer(text, low, high)]
            if distances:
                cuts.append(min(distances)[1])
                break
    pieces = (text[a:b].strip("\n").rstrip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True))
    return [p for p in pieces if p.strip()]


def content_hash(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_by_content(
    documents: Sequence[str], heldout: float, missing: Sequence[str] = ("test", "validation")
) -> dict[str, list[str]]:
    """Split documents so that each split of ``missing`` gets the fraction ``heldout`` of the distinct ones.

    The documents with the smallest content hashes become the first missing split, the next ones the second;
    the rest is ``train``.  So the result depends on the documents alone, not on their order or on file names,
    and identical documents always land in the same split.  With too few distinct documents to give one to
    every split, all stay in ``train``.
    """
    hashes = [content_hash(d) for d in documents]
    ranked = sorted(set(hashes))
    size = max(1, round(heldout * len(ranked))) if len(ranked) > len(missing) else 0
    place = {h: missing[i // size] for i, h in enumerate(ranked[: size * len(missing)])}
    return {
        split: [d for d, h in zip(documents, hashes, strict=True) if place.get(h, "train") == split]
        for split in ("train", *missing)
    }
