"""Write the page of studies next to ``studies.json``; nothing is computed from runs here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from libmoe.analysis.studies.figures import Study
from libmoe.core.errors import DataError
from libmoe.core.files import finite
from libmoe.report.experts.pictures import painted
from libmoe.report.experts.studied import study_figures, study_tables
from libmoe.report.experts.study_page import page
from libmoe.report.experts.tables import figure_tables
from libmoe.report.experts.writing import ExpertPaths, read, write

SERIES, MAP = ("series",), ("rows", "columns", "values")
NEEDED = {"lines": SERIES, "bars": SERIES, "heat": MAP}
"""What a figure of each kind must have."""


class Studied(TypedDict):
    """What ``libmoe study`` leaves: studies, why others are missing, notes, and the runs that were compared."""

    studies: list[Study]
    missing: dict[str, str]
    notes: list[str]
    runs: list[dict[str, Any]]


def write_study_report(folder: str | Path) -> ExpertPaths:
    """Write ``studies.html`` and ``figures/study-*`` (PNG, SVG and CSV) into ``folder``.

    Raises:
        DataError: no ``studies.json`` there, or a malformed one; nothing is written then.
    """
    folder = Path(folder)
    source = folder / "studies.json"
    content = checked_studies(read(source, "libmoe study"), str(source))
    drawn = study_figures(content["studies"])
    files = painted(drawn) | figure_tables(drawn) | study_tables(content["studies"])
    home = folder.resolve()
    name = home.parent.name if home.name == "analysis" else home.name
    return write(folder / "studies.html", page(name, **content), files)


def checked_studies(content: Any, place: str) -> Studied:
    """``content`` with None for every number that is not finite; what older files lack is empty.

    Raises:
        DataError: it holds no studies; the line begins with ``place`` and names what is wrong.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("studies"), list):
        raise DataError(f"{place}: studies is missing")
    for number, study in enumerate(content["studies"]):
        _check(study, f"{place}: study {study.get('name', number) if isinstance(study, Mapping) else number}")
    found = finite(content)
    for number, run in enumerate(found.get("runs", [])):
        for key in ("run", "method", "seed", "steps", "facts"):
            if key not in run:
                raise DataError(f"{place}: run {number}: {key} is missing")
    return Studied(
        studies=found["studies"],
        missing=found.get("missing", {}),
        notes=found.get("notes", []),
        runs=found.get("runs", []),
    )


def _check(study: Any, place: str) -> None:
    for key in ("name", "title", "text", "figures", "tables"):
        if not isinstance(study, Mapping) or key not in study:
            raise DataError(f"{place}: {key} is missing")
    for number, figure in enumerate(study["figures"]):
        kind = figure.get("kind")
        if kind not in NEEDED:
            raise DataError(f"{place}: figure {number} is of kind {kind!r}; there are {', '.join(NEEDED)}")
        for key in ("title", "x", "y", *NEEDED[kind]):
            if key not in figure:
                raise DataError(f"{place}: figure {number}: {key} is missing")
    for name, table in study["tables"].items():
        if len({len(column) for column in table.values()}) > 1:
            raise DataError(f"{place}: table {name} has columns of different length")
