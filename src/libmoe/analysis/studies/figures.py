"""What a study hands over: tables and figures as plain data.  Drawing them is the report's business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

Number = float | None
"""``None`` stands for a number that could not be measured."""


class Line(TypedDict):
    """A line or a set of bars; ``low`` and ``high`` bound an interval."""

    label: str
    x: list[Any]
    y: list[Number]
    low: list[Number]
    high: list[Number]


class Figure(TypedDict):
    """``kind`` is ``lines``, ``bars`` (both with ``series``) or ``heat`` (with ``rows``, ``columns``, ``values``)."""

    kind: str
    title: str
    x: str
    y: str
    series: NotRequired[list[Line]]
    rows: NotRequired[list[str]]
    columns: NotRequired[list[str]]
    values: NotRequired[list[list[Number]]]


Table = dict[str, list[Any]]
"""Columns of equal length by name."""


class Study(TypedDict):
    """``text`` says what was measured and how to read it; all of it is JSON."""

    name: str
    title: str
    text: str
    figures: list[Figure]
    tables: dict[str, Table]


def line(
    label: str, x: Iterable[Any], y: Iterable[float], low: Iterable[float], high: Iterable[float]
) -> Line:
    return {"label": label, "x": list(x), "y": numbers(y), "low": numbers(low), "high": numbers(high)}


def drawn(kind: str, title: str, x: str, y: str, series: Sequence[Line]) -> Figure:
    """Figures of kind ``lines`` or ``bars``."""
    return {"kind": kind, "title": title, "x": x, "y": y, "series": list(series)}


def heat(
    title: str, x: str, y: str, rows: Sequence[Any], columns: Sequence[Any], values: Iterable[Iterable[float]]
) -> Figure:
    return {
        "kind": "heat",
        "title": title,
        "x": x,
        "y": y,
        "rows": [str(row) for row in rows],
        "columns": [str(column) for column in columns],
        "values": [numbers(row) for row in values],
    }


def numbers(values: Iterable[float]) -> list[Number]:
    return [float(value) if math.isfinite(value) else None for value in values]


def table_of(series: Mapping[str, Sequence[Line]], x: str) -> Table:
    """The points of several sets of lines, one row for each: measure, label, x, value and interval."""
    table: Table = {name: [] for name in ("measure", "label", x, "value", "low", "high")}
    for measure, drawn_lines in series.items():
        for one in drawn_lines:
            table["measure"] += [measure] * len(one["x"])
            table["label"] += [one["label"]] * len(one["x"])
            table[x] += one["x"]
            table["value"] += one["y"]
            table["low"] += one["low"]
            table["high"] += one["high"]
    return table
