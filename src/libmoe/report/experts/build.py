"""Write the report of an analysis next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libmoe.report.experts.figures import figures
from libmoe.report.experts.page import page
from libmoe.report.experts.pictures import pictures
from libmoe.report.experts.schema import checked
from libmoe.report.experts.tables import tables
from libmoe.report.experts.writing import ExpertPaths, read, write


def write_expert_report(folder: str | Path, analysis: Any | None = None) -> ExpertPaths:
    """Write ``report.html`` and ``figures/*`` (PNG, SVG and CSV) into ``folder``.

    Args:
        analysis: its content (:class:`~libmoe.report.experts.schema.Analysis`); read from ``analysis.json`` if None.

    Raises:
        DataError: no analysis, or a malformed one; nothing is written then.
    """
    folder = Path(folder)
    content = checked(read(folder / "analysis.json", "libmoe analyze") if analysis is None else analysis)
    drawn = figures(content)
    files = pictures(content, drawn) | tables(content, drawn)
    return write(folder / "report.html", page(content, drawn), files)
