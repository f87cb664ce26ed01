"""What all of these pages do with files: read what was measured, write a page and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.core.files import write_atomically


@dataclass(frozen=True)
class ExpertPaths:
    """Where a page and its figures were written."""

    html: Path
    figures: tuple[Path, ...]


def read(path: Path, command: str) -> Any:
    """JSON that ``command`` leaves.

    Raises:
        DataError: there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; `{command}` writes it") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None


def write(path: Path, html: str, files: Mapping[str, bytes]) -> ExpertPaths:
    """Write the page to ``path`` after its ``files``, which go to ``figures`` beside it."""
    folder = path.parent / "figures"
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_atomically(path, html.encode("utf-8", "replace"))
    return ExpertPaths(path, tuple(folder / name for name in files))
