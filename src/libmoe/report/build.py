"""Write the report of a grid next to its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libmoe.core.files import to_json, write_atomically
from libmoe.report.csvs import csvs
from libmoe.report.html import page
from libmoe.report.pictures import figures
from libmoe.report.summary import summarise


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written, and what it says first."""

    html: Path
    json: Path
    figures: tuple[Path, ...]
    headline: tuple[str, ...]


def write_report(grid_dir: Path) -> ReportPaths:
    """Write ``report.html``, ``report.json`` and ``figures/*`` (PNG, SVG and CSV) into ``grid_dir``.

    Raises:
        DataError: ``results.json`` is missing or malformed; nothing is written then.
    """
    folder = Path(grid_dir)
    summary = summarise(folder)
    paths = []
    for name, content in (figures(summary) | csvs(summary)).items():
        paths.append(folder / "figures" / name)
        write_atomically(paths[-1], content)
    write_atomically(folder / "report.json", to_json(summary, indent=1).encode("utf-8", "replace"))
    write_atomically(folder / "report.html", page(summary).encode("utf-8", "replace"))
    headline = tuple(summary["headline"])
    return ReportPaths(folder / "report.html", folder / "report.json", tuple(paths), headline)
