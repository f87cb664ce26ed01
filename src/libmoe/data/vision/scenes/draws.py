"""Random choices that depend on a key and a name, never on which ones were made before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from libmoe.data.order import permutation, random_u64

T = TypeVar("T")


class Draw:
    """Choices by name: the same name gives the same choice, whatever else is drawn.

    Args:
        key: tells these choices from others, for example a seed, a split and the number of a row.
    """

    def __init__(self, *key: str | int) -> None:
        self.key = key

    def within(self, *name: str | int) -> Draw:
        """Choices of their own, for a part of what is made."""
        return Draw(*self.key, *name)

    def below(self, count: int, *name: str | int) -> int:
        """One of ``range(count)``."""
        return int(random_u64(1, *self.key, *name)[0] % count)

    def pick(self, options: Sequence[T], *name: str | int) -> T:
        return options[self.below(len(options), *name)]

    def order(self, options: Sequence[T], *name: str | int) -> list[T]:
        """All of them in a random order; of several that are equal the first counts, so that repeating an option
        makes it come early more often."""
        return list(dict.fromkeys(options[i] for i in permutation(len(options), *self.key, *name)))
