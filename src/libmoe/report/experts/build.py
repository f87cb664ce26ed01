"""Write the report of an analysis next to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.core.files import write_atomically
from libmoe.report.experts.figures import figures
from libmoe.report.experts.page import page
from libmoe.report.experts.pictures import pictures
from libmoe.report.experts.schema import checked
from libmoe.report.experts.tables import tables


@dataclass(frozen=True)
class ExpertPaths:
    """Where the report was written."""

    html: Path
    figures: tuple[Path, ...]


def write_expert_report(folder: str | Path, analysis: Any | None = None) -> ExpertPaths:
    """Write ``report.html`` and ``figures/*`` (PNG, SVG and CSV) into ``folder``.

    Args:
        analysis: its content (:class:`~libmoe.report.experts.schema.Analysis`); read from ``analysis.json`` if None.

    Raises:
        DataError: no analysis, or a malformed one; nothing is written then.
    """
    folder = Path(folder)
    content = checked(_read(folder / "analysis.json") if analysis is None else analysis)
    drawn = figures(content)
    files = pictures(content, drawn) | tables(content, drawn)
    html = page(content, drawn)
    for name, written in files.items():
        write_atomically(folder / "figures" / name, written)
    write_atomically(folder / "report.html", html.encode("utf-8", "replace"))
    return ExpertPaths(folder / "report.html", tuple(folder / "figures" / name for name in files))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; `libmoe analyze` writes it") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
