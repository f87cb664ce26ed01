"""The mark of a grid folder, ``grid.json``: which comparison it holds, so that two are never mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from libmoe.bench.grid import Grid
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold, write_json
from libmoe.train.folder import first_difference

FILE = "grid.json"
GROWING = ("entries", "seeds", "families")
"""Keys that a later command may add to."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a grid folder; one that the block leaves empty is removed again.

    Raises:
        ConfigError: another process holds it.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with hold(folder):
            yield
    finally:
        if new and [place.name for place in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            with contextlib.suppress(OSError):  # somebody else has put something there
                for place in new:
                    place.rmdir()


def join(folder: Path, grid: Grid) -> dict[str, Any]:
    """The grid of the folder when ``grid`` has joined it: what it holds, with new entries, seeds and families.

    Nothing is written; that is for :func:`claim`.

    Raises:
        ConfigError: it holds a run, a comparison under another recipe or budget, or another entry of the same name.
    """
    if (folder / "recipe.yaml").exists():
        raise ConfigError(f"{folder} holds a run, not a comparison; choose another --out")
    mine = to_dict(grid)
    del mine["workers"]  # where cells run is no part of the comparison
    mine["entries"] = {entry["key"]: entry for entry in mine["entries"]}
    theirs = _read(folder / FILE)
    if theirs is None:
        return mine
    growing = GROWING if grid.until is None else tuple(key for key in GROWING if key != "seeds")
    shared = {key: value for key, value in mine.items() if key not in growing}
    # A mark that is older than a key was made with what it is by default.
    difference = first_difference({key: theirs.get(key, _DEFAULTS.get(key)) for key in shared}, shared)
    for key in mine["entries"].keys() & theirs["entries"].keys():
        difference = difference or first_difference(
            theirs["entries"][key], mine["entries"][key], f"entry {key}"
        )
    if difference:
        raise ConfigError(
            f"{folder} holds another comparison: {difference}; choose another --out or delete the folder"
        )
    return theirs | {
        "entries": theirs["entries"] | mine["entries"],
        "seeds": _union(theirs["seeds"], mine["seeds"]),
        "families": {
            name: _union(theirs.get("families", {}).get(name, []), mine["families"].get(name, []))
            for name in _union(list(theirs.get("families", {})), list(mine["families"]))
        },
    }


def claim(folder: Path, whole: Mapping[str, Any]) -> None:
    """Make the folder this comparison's own; ``whole`` is what :func:`join` gave."""
    write_json(folder / FILE, whole)


def _read(mark: Path) -> dict[str, Any] | None:
    """What the folder holds, or ``None``.

    Raises:
        ConfigError: the mark is damaged.
    """
    if not mark.exists():
        return None
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
        found["entries"].keys(), found["seeds"][0]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{mark} is damaged; choose another --out or delete the folder") from None
    return found


def _union(before: list[Any], more: list[Any]) -> list[Any]:
    return [*before, *(item for item in more if item not in before)]


_DEFAULTS = {
    f.name: to_dict(f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
    for f in dataclasses.fields(Grid)
}
