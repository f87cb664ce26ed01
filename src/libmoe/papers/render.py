"""The catalogue as text: an aligned table for the terminal, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from libmoe.core.errors import ConfigError
from libmoe.papers.entry import Paper

_HEADER = ("no", "status", "key", "year", "title")
_GAP = "  "
_MIN_TITLE = 12


def render_table(papers: Iterable[Paper], width: int) -> str:
    """Plain-text table, one paper a line; long titles are cut so that no line is wider than ``width``.

    Raises:
        ConfigError: ``width`` (characters) leaves no room for the titles.
    """
    rows = [
        (f"{entry.number:03d}", entry.status, entry.key, str(entry.year), entry.title) for entry in papers
    ]
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(4)]
    room = width - sum(widths) - len(_GAP) * len(widths)
    if room < _MIN_TITLE:
        least = width - room + _MIN_TITLE
        raise ConfigError(f"width {width} is too narrow for the table; use {least} or more")
    lines = []
    for row in (_HEADER, *rows):
        cells = [cell.ljust(size) for cell, size in zip(row[:-1], widths, strict=True)]
        title = row[-1] if len(row[-1]) <= room else row[-1][: room - 1].rstrip() + "…"
        lines.append(_GAP.join([*cells, title]))
    return "\n".join(lines)


def to_json(papers: Iterable[Paper]) -> str:
    """The papers as a JSON list of objects, one field per attribute."""
    return json.dumps([asdict(entry) for entry in papers], indent=2, ensure_ascii=False)
