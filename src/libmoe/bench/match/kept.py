"""Solved sizes, kept beside the cells: whoever resumes the comparison, on whatever machine, solves nothing anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid
from libmoe.bench.match.matched import Matched
from libmoe.bench.origin import origin_of
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import to_json, write_json

FILE = "sizes.json"
_ASKED = ("match", "solve", "tolerance", "memory", "calibration_steps")


def read_sizes(folder: str | Path, grid: Grid) -> dict[str, Matched]:
    """Sizes that ``folder`` holds for entries of the grid, of those that would be solved for the same again.

    Raises:
        ConfigError: the file is damaged.
    """
    found = _read(Path(folder) / FILE)
    try:
        return {
            entry.key: build(Matched, found[entry.key]["size"], f"{FILE}: {entry.key}")
            for entry in grid.entries
            if entry.key in found and found[entry.key]["question"] == _question(grid, entry)
        }
    except (LookupError, TypeError, ConfigError):
        raise _damaged(Path(folder) / FILE) from None


def write_sizes(folder: str | Path, grid: Grid, sizes: Mapping[str, Matched]) -> None:
    """Keep sizes; those of entries that the grid leaves out stay."""
    path = Path(folder) / FILE
    mine = {
        key: {"question": _question(grid, grid.entry(key)), "size": to_dict(m)} for key, m in sizes.items()
    }
    write_json(path, _read(path) | mine)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"{path} is damaged; delete it to solve the sizes anew")


def _question(grid: Grid, entry: Entry) -> str:
    """A digest of all that decides the size of an entry."""
    entries = [entry, grid.entry(grid.baseline)]
    if grid.budget(entry).uses_reference:
        entries.append(grid.entry(grid.reference))
    recipe = to_dict(grid.recipe)
    for key in ("name", "seed", "eval"):
        del recipe[key]
    asked = [
        [{k: v for k, v in to_dict(e).items() if k != "label"} for e in entries],
        [origin_of(grid.cell_recipe(e, grid.seeds[0], e.options)) for e in entries],
        [getattr(grid, name) for name in _ASKED],
        recipe,
    ]
    return hashlib.sha256(to_json(asked).encode()).hexdigest()
