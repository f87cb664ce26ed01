"""A study on a page and in files: its sentences, figures and tables, for every page that shows studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from libmoe.analysis.studies.figures import Figure, Study, Table
from libmoe.report.csvs import written
from libmoe.report.experts.parts import Section, figure
from libmoe.report.experts.specs import study_file
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import MISSING, count, minus
from libmoe.report.sections.frame import note
from libmoe.report.table import Cell, table

ROWS = 60
"""Longer tables are CSV alone."""
MAPS = 4
"""Heat maps of a study that are open; the others unfold."""
TERMS = {
    "low": "lower end of the 95 % interval",
    "high": "upper end of the 95 % interval",
    "p_holm": "p-value after Holm's correction for the number of pairs",
    "covers": "what the interval takes into account",
    "share_of_data": "share of training after which routing is settled",
    "gap": "loss with the best expert hidden over loss with all experts, minus 1",
}
"""Columns that need a word."""


def study_figures(studies: Sequence[Study]) -> dict[str, Figure]:
    """All figures by the name of their files."""
    return {
        study_file(study["name"], i): found for study in studies for i, found in enumerate(study["figures"])
    }


def study_tables(studies: Sequence[Study]) -> dict[str, bytes]:
    """All tables as ``{file name: CSV}``."""
    return {
        _table_file(study, name): written(
            [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        )
        for study in studies
        for name, found in study["tables"].items()
    }


def study_section(study: Study) -> Section:
    """What was found, how it was measured, the figures, and the tables that are short enough."""
    found = study.get("found", [])
    return Section(
        study_file(study["name"], "study"),
        study["title"],
        study["title"],
        [
            el("ul", *[el("li", sentence) for sentence in found], class_="findings") if found else None,
            el("p", study["text"]),
            *_figures(study),
            *_tables(study),
        ],
    )


def _figures(study: Study) -> list[Markup]:
    names = {study_file(study["name"], i): found for i, found in enumerate(study["figures"])}
    folded = [name for name, found in names.items() if found["kind"] == "heat"][MAPS:]
    shown = [figure(name) for name in names if name not in folded]
    if not folded:
        return shown
    return [
        *shown,
        el(
            "details",
            el("summary", count(len(folded), "more map")),
            *[figure(name) for name in folded],
            class_="notices",
        ),
    ]


def _tables(study: Study) -> list[object]:
    short = {name: found for name, found in study["tables"].items() if 0 < _rows(found) <= ROWS}
    long = {name: found for name, found in study["tables"].items() if _rows(found) > ROWS}
    shown: list[object] = [_table(name, found) for name, found in short.items()]
    for name, found in long.items():
        file = el("code", f"figures/{_table_file(study, name)}")
        shown.append(note(f"Table {_title(name)}: {_rows(found)} rows, in ", file, "."))
    return shown


def _table(name: str, found: Table) -> Markup:
    heads = [(_title(column), TERMS.get(column, "")) for column in found]
    rows = [[_cell(value) for value in row] for row in zip(*found.values(), strict=True)]
    return table(heads, rows, f"Table: {_title(name)}", class_="by-layer")


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell(MISSING, None, "num")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", int(value))
    if isinstance(value, int | float):
        return Cell(minus(f"{value:.4g}" if isinstance(value, float) else str(value)), value, "num")
    return Cell(str(value), str(value))


def _title(name: str) -> str:
    return name.replace("_", " ")


def _rows(found: Table) -> int:
    return len(next(iter(found.values()), ()))


def _table_file(study: Study, name: str) -> str:
    return f"{study_file(study['name'], f'table-{name}')}.csv"
