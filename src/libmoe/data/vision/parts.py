"""Held-out rows of a source that has none of its own."""

from __future__ import annotations

import hashlib

from libmoe.core.errors import DataError, unknown
from libmoe.data.vision.rows import Conversation, Conversations

EVERY = 50
"""Of so many rows one is held out for validation and one for the test."""
PLACES = {"validation": EVERY - 2, "test": EVERY - 1}


class Part:
    """Rows of a source that belong to one split; implements :class:`~libmoe.data.vision.rows.Conversations`.

    Args:
        split: ``train``, ``validation`` or ``test``.

    Raises:
        ConfigError: an unknown split.
        DataError: the source is too small to be divided.
    """

    def __init__(self, source: Conversations, split: str) -> None:
        if split not in ("train", *PLACES):
            raise unknown("split of conversations", split, ["train", *PLACES])
        if len(source) < EVERY:
            raise DataError(f"{len(source)} rows are too few to hold any out; at least {EVERY} are needed")
        self._source, self._split = source, split
        kept = [n for n in range(len(source)) if (n % EVERY in PLACES.values()) == (split != "train")]
        self._numbers = kept if split == "train" else [n for n in kept if n % EVERY == PLACES[split]]

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, number: int) -> Conversation:
        return self._source.row(self._numbers[number])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._source.fingerprint}:{self._split}:{EVERY}".encode()).hexdigest()
