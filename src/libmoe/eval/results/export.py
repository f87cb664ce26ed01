"""Rows of the results store as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.files import to_json, write_atomically
from libmoe.eval.results.columns import RESULTS

Rows = Sequence[dict[str, Any]]


def export(
    rows: Rows, path: str | Path, columns: Sequence[str] | None = None, kind: str | None = None
) -> None:
    """Write ``rows`` as a file.

    Args:
        columns: of the file, which it has even without rows; ``None`` for all.
        kind: ``csv``, ``parquet`` or ``json``; ``None``: as the end of ``path`` says.

    Raises:
        ConfigError: an unknown kind, or parquet is not installed.
    """
    writers = {"csv": _csv, "parquet": _parquet, "json": _json}
    kind = kind if kind is not None else Path(path).suffix.removeprefix(".")
    if kind not in writers:
        raise unknown("file type", kind, writers)
    write_atomically(path, writers[kind](rows, list(columns if columns is not None else RESULTS)))


def _csv(rows: Rows, names: list[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(rows: Rows, names: list[str]) -> bytes:
    return (to_json(list(rows), indent=1) + "\n").encode()


def _parquet(rows: Rows, names: list[str]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("parquet needs pyarrow: pip install 'libmoe[eval]'") from None
    types = {"TEXT": pyarrow.string(), "REAL": pyarrow.float64(), "INTEGER": pyarrow.int64()}
    shape = pyarrow.schema([(name, types[RESULTS[name].type]) for name in names])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=shape), buffer)
    return buffer.getvalue()
