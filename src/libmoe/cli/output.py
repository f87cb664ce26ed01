"""Printing: tables and words for people, JSON for scripts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line for the person at the terminal; goes to standard error, so that JSON output stays clean."""
    notes.print(text, markup=False, soft_wrap=not notes.is_terminal)  # logs keep their lines whole


def emit_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Aligned table; columns of numbers are set to the right and never broken over lines."""
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(re.fullmatch(r"[-+]?[\d,.e+-]*%?", _cell(row[i])) for row in rows)
        out.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        out.add_row(*(Text(_cell(v)) for v in row))  # plain text: brackets are no markup here
    console.print(out)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
