"""Samples of a task in parquet: one row per document, what was asked, answered and scored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically

TEXT = ("document", "target", "arguments", "responses", "filtered", "metrics")
"""Columns of JSON text: their shape differs from task to task."""


class SampleFile:
    """``samples/TASK/part-START-STOP.parquet``: one file per slice, there when the slice is finished.

    Columns: ``doc_id`` (its number in the task's file), ``cluster`` (what it belongs together with), the columns of
    :data:`TEXT`, ``error`` (why it was left out, else null) and one float column ``score.METRIC`` for each metric that
    is a number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, start: int, stop: int) -> Path:
        return self.folder / f"part-{start:08d}-{stop:08d}.parquet"

    def write(self, start: int, stop: int, rows: list[dict[str, Any]]) -> None:
        pyarrow = _pyarrow()
        columns: dict[str, list[Any]] = {
            "doc_id": [row["doc_id"] for row in rows],
            "cluster": [row["cluster"] for row in rows],
            **{name: [to_text(row.get(name)) for row in rows] for name in TEXT},
            "error": pyarrow.array([row.get("error") for row in rows], pyarrow.string()),
        }
        names = dict.fromkeys(name for row in rows for name in row.get("metrics") or {})
        for name in names:
            values = [(row.get("metrics") or {}).get(name) for row in rows]
            if all(v is None or isinstance(v, (bool, int, float)) for v in values):
                columns[f"score.{name}"] = pyarrow.array(
                    [None if v is None else float(v) for v in values], pyarrow.float64()
                )
        buffer = BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
        write_atomically(self.path(start, stop), buffer.getvalue())

    def read(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of all parts in order, one part in memory at a time."""
        for path in sorted(self.folder.glob("part-*.parquet")):
            table = _pyarrow().parquet.read_table(path, columns=columns)
            for row in table.to_pylist():
                for name in TEXT:
                    if name in row and row[name] is not None:
                        row[name] = json.loads(row[name])
                yield row


def to_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=plain)


def plain(value: Any) -> Any:
    """What JSON lacks, in a form it has: numpy's numbers as numbers, everything else as its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__iter__"):
        return list(value)
    return str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("samples are kept in parquet: pip install 'libmoe[eval]'") from None
    return pyarrow
