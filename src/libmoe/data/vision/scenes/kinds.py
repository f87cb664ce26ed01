"""Scenes for training, of five kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.scene import CORNERS, Cell, Scene, Writing, backgrounds
from libmoe.data.vision.scenes.things import Thing, as_often_as_shown
from libmoe.data.vision.scenes.wording import texts

TRAIN_STYLES = ("noto", "twemoji")
TEST_STYLE = "fluent"

MOST = 12
"""Largest sum of two digits that is asked for."""


def spread(contents: Sequence[Cell], draw: Draw) -> tuple[Cell, ...]:
    """The four cells, with ``contents`` in some of them."""
    cells: list[Cell] = [None] * len(CORNERS)
    for corner, content in zip(draw.order(range(len(CORNERS)), "corners"), contents):
        cells[corner] = content
    return tuple(cells)


def companions(first: Thing | None, draw: Draw) -> list[Thing]:
    """Things in the order in which they would join a scene: popular ones early more often, and in every second scene
    those of one category before all others, so that what belongs together is seen together.  ``first`` is none."""
    order = [t for t in draw.order(as_often_as_shown(), "companions") if t != first]
    if draw.below(2, "of a kind"):
        category = (first or order[0]).category
        order.sort(key=lambda t: t.category != category)
    return order


def single(draw: Draw) -> list[Cell]:
    return [draw.pick(as_often_as_shown(), "thing")]


def several(draw: Draw) -> list[Cell]:
    """Two to four different things; now and then none."""
    count = (0, 2, 2, 3, 3, 3, 4, 4, 4)[draw.below(9, "count")]
    return list(companions(None, draw)[:count])


def repeated(draw: Draw) -> list[Cell]:
    """Two to four times the same thing, and others besides."""
    thing = draw.pick(as_often_as_shown(), "thing")
    times = 2 + draw.below(3, "times")
    return [*[thing] * times, *companions(thing, draw)[: draw.below(5 - times, "others")]]


def written(draw: Draw) -> list[Cell]:
    """A word or a number, and up to two things."""
    kinds = texts(heldout=False)
    text = draw.pick(kinds[draw.pick(list(kinds), "kind")], "text")
    return [Writing(text), *companions(None, draw)[: draw.below(3, "others")]]


def digits(draw: Draw) -> list[Cell]:
    """Two digits whose sum is at most :data:`MOST`, and up to two things."""
    total = draw.below(MOST + 1, "total")
    return [*addends(total, draw), *companions(None, draw)[: draw.below(3, "others")]]


def addends(total: int, draw: Draw) -> list[Writing]:
    """Two digits with this sum."""
    first = draw.pick(range(max(0, total - 9), min(9, total) + 1), "addend")
    return [Writing(str(first)), Writing(str(total - first))]


KINDS: dict[str, tuple[Callable[[Draw], list[Cell]], tuple[str, ...]]] = {
    "single": (
        single,
        ("existence", "corner", "color", "commonsense_reasoning", "text_translation", "coarse", "fine"),
    ),
    "several": (
        several,
        ("existence", "count", "position", "corner", "color", "commonsense_reasoning", "commonsense_corner", "fine",
         "scene"),
    ),
    "repeated": (repeated, ("existence", "count", "color", "scene")),
    "written": (written, ("existence", "corner", "color", "OCR")),
    "digits": (digits, ("existence", "color", "numerical_calculation")),
}  # fmt: skip
"""By name: what is shown, and what can be asked about it."""


def training_scene(kind: str, part: str, draw: Draw) -> Scene:
    """A scene of known things in a style of training, whose composition is of a part of the data.

    Args:
        part: ``train`` or ``validation``.
    """
    cells = spread(KINDS[kind][0](draw), draw)
    return Scene(cells, draw.pick(backgrounds(cells, part), "background"), draw.pick(TRAIN_STYLES, "style"))
