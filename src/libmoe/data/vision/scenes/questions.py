"""The test items of scenes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from libmoe.core.errors import ConfigError
from libmoe.data.vision.rows import IMAGE, Question
from libmoe.data.vision.scenes import choices, yes_no
from libmoe.data.vision.scenes.blocks import Item, Split, split_named
from libmoe.data.vision.scenes.conversations import TASKS, check_tasks
from libmoe.data.vision.scenes.drawing import SIZE, check_size, draw
from libmoe.data.vision.scenes.draws import Draw

BLOCKS: dict[str, Callable[[Split, Draw, int], list[Item]]] = {
    "existence": yes_no.existence,
    "count": choices.count,
    "position": yes_no.position,
    "corner": choices.corner,
    "color": choices.color,
    "OCR": choices.reading,
    "commonsense_reasoning": yes_no.knowledge,
    "commonsense_corner": choices.knowledge_corner,
    "numerical_calculation": choices.calculation,
    "text_translation": choices.translation,
    "coarse": choices.coarse,
    "fine": choices.fine,
    "scene": choices.whole,
}
"""By task: the items of the block of a number."""

PAIRED = ("existence", "position", "commonsense_reasoning")
"""Tasks of yes and no; the two questions on an image also count together (MME's acc+)."""

UNNAMED = ("existence", "count", "corner", "color", "OCR", "coarse")
"""Tasks of split ``concept``: those in which the things that were held out need no name."""


def tasks_of(split: str) -> tuple[str, ...]:
    """The tasks that a test split has."""
    return UNNAMED if split_named(split).name == "concept" else TASKS


def questions(
    split: str,
    tasks: Sequence[str] | None = None,
    number: int = 200,
    seed: int = 0,
    size: int = SIZE,
) -> list[Question]:
    """Test items, ``number`` of each task or, where a block of items is not complete then, a few more.

    Of each task no two items are equal in image, question and choices.

    Args:
        split: ``seen``, ``style`` or ``concept`` (see :class:`~libmoe.data.vision.rows.Question`).
        tasks: all that the split has by default.

    Raises:
        ConfigError: an unknown split or task, a task that the split lacks, or an impossible size.
    """
    wanted = tasks_of(split) if tasks is None else tasks
    check_tasks(wanted)
    check_size(size)
    for task in wanted:
        if task not in tasks_of(split):
            raise ConfigError(f"split {split!r} has no task {task!r}; it has: {', '.join(tasks_of(split))}")
    return [question for task in wanted for question in _questions(split, task, number, seed, size)]


def _questions(split: str, task: str, number: int, seed: int, size: int) -> list[Question]:
    found: list[Question] = []
    seen: set[tuple[object, ...]] = set()
    for block in itertools.count():
        if len(found) >= number:
            return found
        items, keys = _new_block(split, task, seed, block, seen)
        seen |= keys
        for place, item in enumerate(items):
            found.append(
                Question(
                    name=f"{task}-{split}-{seed}-{block}-{place}",
                    task=task,
                    question=f"{IMAGE}\n{item.question}",
                    choices=item.choices,
                    gold=item.gold,
                    image=partial(draw, item.scene, size),
                    group=f"{task}-{split}-{seed}-{block}-image-{item.image}" if task in PAIRED else "",
                    split=split,
                    facts=item.scene.record() | item.facts,
                )
            )
    raise AssertionError("blocks have no end")


def _new_block(
    split: str, task: str, seed: int, block: int, seen: set[tuple[object, ...]]
) -> tuple[list[Item], set[tuple[object, ...]]]:
    """The items of a block, drawn until none of them was seen before."""
    for attempt in itertools.count():
        drawn = Draw("test scenes", seed, split, task, block, attempt)
        items = BLOCKS[task](split_named(split), drawn, block)
        keys: set[tuple[object, ...]] = {(i.scene, i.question, *sorted(i.choices)) for i in items}
        if len(keys) == len(items) and seen.isdisjoint(keys):
            return items, keys
    raise AssertionError("attempts have no end")
