"""What sections of these pages are made of: their names, and the places that the script fills."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.report.markup import Markup, el


@dataclass(frozen=True)
class Section:
    name: str
    short: str
    title: str
    content: list[object]


def place(name: str, label: str) -> Markup:
    """Where a view of its own is drawn."""
    return el("div", el("p", "Drawn by the page's script.", class_="missing"), id=name, data_view=label)


def figure(name: str) -> Markup:
    """Where a figure is drawn; ``name`` is that of its files."""
    return el("figure", el("div", class_="drawn", data_figure=name), el("figcaption", class_="note"))
