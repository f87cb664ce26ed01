"""What all sections are made of."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.report.markup import Markup, el

WIDE, NARROW = 1100, 360
"""Widths in pixels that pictures are drawn for; the style sheet shows the one that fits."""


def section(name: str, title: str, content: list[object]) -> Markup:
    return el("section", el("h2", title, id=name), *content, aria_labelledby=name)


def note(*content: object) -> Markup:
    return el("p", *content, class_="note")


def missing(what: str) -> list[object]:
    return [el("p", what, class_="missing")]


def both(wide: Markup, narrow: Markup) -> Markup:
    return el("div", el("div", wide, class_="wide"), el("div", narrow, class_="narrow"), class_="figure")


def tall(height: int, labels: Sequence[object]) -> int:
    """Give a picture that labels every method room for all of the labels."""
    return max(height, 80 + 18 * len(labels))
