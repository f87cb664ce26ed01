"""Small helpers that figures are made with: their data, file names and scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from libmoe.analysis.studies.figures import Line, Number
from libmoe.report.experts.schema import Figure


def heat(
    title: str, x: str, y: str, rows: list[str], values: Sequence[Sequence[Number]], **more: Any
) -> Figure:
    """A heat map; rows of unequal length are filled up with None."""
    width = max(map(len, values), default=0)
    full = [[*row, *[None] * (width - len(row))] for row in values]
    columns = more.pop("columns", [str(i) for i in range(width)])
    figure: Figure = {"kind": "heat", "title": title, "x": x, "y": y, "rows": rows, "columns": columns}
    figure["values"] = full
    return figure | more  # type: ignore[return-value]


def lines(title: str, x: str, y: str, series: list[Line], **more: Any) -> Figure:
    figure: Figure = {"kind": "lines", "title": title, "x": x, "y": y, "series": series}
    return figure | more  # type: ignore[return-value]


def line(label: str, x: Sequence[float], y: Sequence[Number]) -> Line:
    """A line without an interval."""
    unknown: list[Number] = [None] * len(x)
    return {"label": label, "x": list(x), "y": list(y), "low": unknown, "high": unknown}


def study_file(study: str, part: str | int) -> str:
    """Name of the file of a study's figure or table; the study's own name may hold anything, a file's may not."""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in f"study-{study}-{part}")


def load_ratio(load: Sequence[float]) -> list[float]:
    """Load of each expert in units of a fair share."""
    fair = sum(load) / max(1, len(load))
    return [value / fair if fair else 0.0 for value in load]


def thinned(size: int, most: int) -> list[int]:
    """At most ``most`` places of ``size``, first and last among them, evenly."""
    return sorted({round(x) for x in np.linspace(0, size - 1, min(size, most))}) if size else []


def mean(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
