"""What a study hands over: tables and figures as plain data.  Drawing them is the report's business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

Number = float | None
"""``None`` stands for a number that could not be measured."""


class Line(TypedDict):
    """A line or a set of bars; ``low`` and ``high`` bound an interval where there is one."""

    label: str
    x: list[Any]
    y: list[Number]
    low: NotRequired[list[Number]]
    high: NotRequired[list[Number]]


class Figure(TypedDict):
    """``kind`` is ``lines``, ``bars`` (both with ``series``) or ``heat`` (with ``rows``, ``columns``, ``values``).

    ``scale`` of a heat map: ``share`` from 0 (default), ``range`` from the least value, ``ratio`` around 1, ``signed``
    around 0.  ``note`` says how to read the figure.
    """

    kind: str
    title: str
    x: str
    y: str
    series: NotRequired[list[Line]]
    rows: NotRequired[list[str]]
    columns: NotRequired[list[str]]
    values: NotRequired[list[list[Number]]]
    scale: NotRequired[str]
    note: NotRequired[str]


Table = dict[str, list[Any]]
"""Columns of equal length by name."""


class Study(TypedDict):
    """``text`` says what was measured and how to read it, ``found`` in sentences what came out; all of it is JSON."""

    name: str
    title: str
    text: str
    found: list[str]
    figures: list[Figure]
    tables: dict[str, Table]


def line(
    label: str,
    x: Iterable[Any],
    y: Iterable[Number],
    low: Iterable[Number] | None = None,
    high: Iterable[Number] | None = None,
) -> Line:
    """A line, with an interval if both of its ends are given."""
    made: Line = {"label": label, "x": list(x), "y": numbers(y)}
    if low is not None and high is not None:
        made["low"], made["high"] = numbers(low), numbers(high)
    return made


def drawn(kind: str, title: str, x: str, y: str, series: Sequence[Line], note: str = "") -> Figure:
    """Figures of kind ``lines`` or ``bars``."""
    figure: Figure = {"kind": kind, "title": title, "x": x, "y": y, "series": list(series)}
    if note:
        figure["note"] = note
    return figure


def heat(
    title: str,
    x: str,
    y: str,
    rows: Sequence[Any],
    columns: Sequence[Any],
    values: Iterable[Iterable[Number]],
    scale: str = "share",
    note: str = "",
) -> Figure:
    """A heat map; rows shorter than there are columns end in None."""
    known = [numbers(row) for row in values]
    figure: Figure = {
        "kind": "heat",
        "title": title,
        "x": x,
        "y": y,
        "rows": [str(row) for row in rows],
        "columns": [str(column) for column in columns],
        "values": [[*row, *[None] * (len(columns) - len(row))] for row in known],
        "scale": scale,
    }
    if note:
        figure["note"] = note
    return figure


def numbers(values: Iterable[Number]) -> list[Number]:
    """JSON's numbers: ``None`` for those that are not finite."""
    return [float(value) if value is not None and math.isfinite(value) else None for value in values]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Rows as columns; ``None`` for numbers that are not finite."""
    found: Table = {name: [] for name in columns}
    for row in rows:
        for name, value in zip(columns, row, strict=True):
            measured = not isinstance(value, float) or math.isfinite(value)
            found[name].append(value if measured else None)
    return found


def table_of(series: Mapping[str, Sequence[Line]], x: str) -> Table:
    """The points of several sets of lines, one row for each: measure, label, x, value and interval."""
    rows = []
    for measure, lines in series.items():
        for one in lines:
            unknown: list[Number] = [None] * len(one["x"])
            points = zip(one["x"], one["y"], one.get("low", unknown), one.get("high", unknown))
            rows += [(measure, one["label"], *point) for point in points]
    return table(("measure", "label", x, "value", "low", "high"), rows)
