"""What a scene shows, as data: things or writing in four corners, on a plain background, drawn in one style."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from libmoe.core.errors import DataError
from libmoe.data.vision.scenes.things import Thing, thing

CORNERS = ("top left", "top right", "bottom left", "bottom right")

BACKGROUNDS = {
    "white": (246, 246, 246),
    "black": (24, 24, 24),
    "gray": (134, 134, 134),
    "red": (206, 60, 52),
    "yellow": (246, 212, 66),
    "green": (70, 158, 74),
    "blue": (58, 112, 214),
    "purple": (142, 76, 176),
}
"""Colours by name, as RGB."""

PARTS = {"test": (0,), "validation": (1,), "train": (2, 3, 4, 5, 6, 7)}
"""Every arrangement of the corners has eight compositions, one on each background; which of them, counted from a
background that depends on the arrangement, belong to which part of the data."""

_WRITTEN = "text: "


@dataclass(frozen=True)
class Writing:
    """A short word or a number."""

    text: str


Cell = Thing | Writing | None


@dataclass(frozen=True)
class Scene:
    """
    Attributes:
        cells: what is in each of :data:`CORNERS`.
        background: a colour of :data:`BACKGROUNDS`.
        style: artist of the things.
    """

    cells: tuple[Cell, ...]
    background: str
    style: str

    @property
    def things(self) -> list[tuple[str, Thing]]:
        """Corners and things, row by row."""
        return [(corner, cell) for corner, cell in zip(CORNERS, self.cells) if isinstance(cell, Thing)]

    @property
    def writings(self) -> list[tuple[str, str]]:
        """Corners and texts, row by row."""
        return [(corner, cell.text) for corner, cell in zip(CORNERS, self.cells) if isinstance(cell, Writing)]

    @property
    def part(self) -> str:
        """Which part of the data the composition (corners and background) belongs to, whatever the style."""
        return next(part for part in PARTS if self.background in backgrounds(self.cells, part))

    def record(self) -> dict[str, str]:
        """Everything about it as text: what is in each corner that is not empty, ``background`` and ``style``."""
        return {
            **{corner: described(cell) for corner, cell in zip(CORNERS, self.cells) if cell is not None},
            "background": self.background,
            "style": self.style,
        }


def from_record(record: Mapping[str, str]) -> Scene:
    """The scene of :meth:`Scene.record`.  Raises DataError where a background is missing or unknown."""
    if record.get("background") not in BACKGROUNDS:
        raise DataError(
            f"no background {record.get('background')!r}; choose one of: {', '.join(BACKGROUNDS)}"
        )
    found = [record.get(corner) for corner in CORNERS]
    cells: list[Cell] = [
        None if text is None
        else Writing(text.removeprefix(_WRITTEN)) if text.startswith(_WRITTEN)
        else thing(text)
        for text in found
    ]  # fmt: skip
    return Scene(tuple(cells), record["background"], record["style"])


def backgrounds(cells: tuple[Cell, ...], part: str) -> list[str]:
    """The backgrounds on which an arrangement belongs to a part of the data: one of eight for ``test`` and for
    ``validation``, the other six for ``train``."""
    text = "/".join("" if cell is None else described(cell) for cell in cells)
    start = hashlib.sha256(text.encode()).digest()[0] % len(BACKGROUNDS)
    names = list(BACKGROUNDS)
    return [names[(start + place) % len(names)] for place in PARTS[part]]


def described(cell: Thing | Writing) -> str:
    return _WRITTEN + cell.text if isinstance(cell, Writing) else cell.name
