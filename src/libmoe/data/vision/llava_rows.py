"""One row in the format of LLaVA, and all that can be wrong with it.

A row is ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`` (Liu et al., "Visual
Instruction Tuning", 2023); without ``image``, or with null there, it is text alone.  A ``task`` may name what it is
about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from libmoe.core.errors import DataError
from libmoe.data.vision.rows import IMAGE, Turn

MISSING, UNREADABLE = "image missing", "image unreadable"
PROBLEMS = (
    "not JSON",
    "not a mapping",
    "no conversations",
    "wrong order of speakers",
    "not text",
    "empty question",
    "empty answer",
    "several or no <image>",
    "image outside of the folder",
    MISSING,
    UNREADABLE,
)


class BrokenRowError(DataError):
    """A row that cannot be used; ``problem`` is one of :data:`PROBLEMS`."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"row {name!r} cannot be used: {problem}")
        self.problem = problem


@dataclass(frozen=True)
class LlavaRow:
    """``image`` is a path from the folder of images, or ``None``."""

    turns: list[Turn]
    image: str | None
    task: str


def parse_line(line: bytes, name: str) -> LlavaRow:
    """A row written as one line of JSON; raises :class:`BrokenRowError`."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BrokenRowError(name, "not JSON") from None
    return parse_row(record, name)


def parse_row(record: Any, name: str) -> LlavaRow:
    """A row as JSON holds it; raises :class:`BrokenRowError`.

    The image's place in the first question is moved to its front, as LLaVA does.
    """
    if not isinstance(record, dict):
        raise BrokenRowError(name, "not a mapping")
    turns = _turns(record.get("conversations"), name)
    image, task = record.get("image"), record.get("task")
    first, *later = (turn.question for turn in turns)
    if first.count(IMAGE) != (image is not None) or any(IMAGE in question for question in later):
        raise BrokenRowError(name, "several or no <image>")
    if image is not None:
        if not isinstance(image, str) or PurePath(image).is_absolute() or ".." in PurePath(image).parts:
            raise BrokenRowError(name, "image outside of the folder")
        rest = first.replace(IMAGE, "").strip()
        turns[0] = Turn(f"{IMAGE}\n{rest}".strip(), turns[0].answer)
    return LlavaRow(turns, image, task if isinstance(task, str) else "")


def _turns(spoken: Any, name: str) -> list[Turn]:
    if not isinstance(spoken, list) or not spoken:
        raise BrokenRowError(name, "no conversations")
    if not all(isinstance(part, dict) for part in spoken):
        raise BrokenRowError(name, "not a mapping")
    if [part.get("from") for part in spoken] != ["human", "gpt"] * (len(spoken) // 2):
        raise BrokenRowError(name, "wrong order of speakers")
    texts = [part.get("value") for part in spoken]
    if not all(isinstance(text, str) and _is_unicode(text) for text in texts):
        raise BrokenRowError(name, "not text")
    texts = [text.strip() for text in texts]
    for problem, part in (("empty question", texts[0::2]), ("empty answer", texts[1::2])):
        if not all(part):
            raise BrokenRowError(name, problem)
    return [Turn(question, answer) for question, answer in zip(texts[0::2], texts[1::2], strict=True)]


def _is_unicode(text: str) -> bool:
    """JSON can hold halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
