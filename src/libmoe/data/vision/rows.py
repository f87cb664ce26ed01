"""What sources of images and conversations hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "<image>"
"""Where a question shows the image; the model's processor puts as many tokens there as an image has patches."""


@dataclass(frozen=True)
class Turn:
    """What is asked and what is to be answered; only the answer is learned."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One training row.

    Attributes:
        name: identifies it in messages: a file and line, or a number.
        turns: the first question holds :data:`IMAGE` once if there is an image.
        image: opens it, as RGB; ``None`` for text alone.  It may raise what PIL raises for a broken file.
        task: what the questions are about, for balance and analysis (``count``, ``position``, ...).
    """

    name: str
    turns: Sequence[Turn]
    image: Callable[[], Image] | None = None
    task: str = ""


@dataclass(frozen=True)
class Question:
    """One item of a test: candidate answers are compared by their likelihood.

    Attributes:
        choices: candidate answers; ``gold`` is the place of the right one.
        group: items that count only together, for example a yes and a no question about the same image.
        split: ``seen`` (new scenes of known things), ``style`` (known things drawn by an artist that was held out)
            or ``concept`` (things that were held out).
    """

    name: str
    task: str
    question: str
    choices: Sequence[str]
    gold: int
    image: Callable[[], Image] | None
    group: str = ""
    split: str = "seen"
    facts: Mapping[str, str] = field(default_factory=dict)


class Conversations(Protocol):
    """A source: rows by number, so that any step's batch can be made without those before.

    ``row(number)`` depends on nothing but the number (and the source's own settings).
    """

    def __len__(self) -> int: ...

    def row(self, number: int) -> Conversation: ...

    @property
    def fingerprint(self) -> str:
        """Tells this content from others: SHA-256 of what decides the rows."""
        ...
