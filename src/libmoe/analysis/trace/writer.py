"""Where a recorder's rows go: kept in memory, or streamed to files by a thread of their own."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libmoe.analysis.trace.schema import SCHEMA, arrow, routing_schema, token_schema
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically, write_json

PART_ROWS = 1 << 20
"""Rows of one file; also what a killed process loses at most."""
GROUP_ROWS = 1 << 16
"""Rows that are compressed together; the unit of reading."""
WAITING = 8
"""Batches that may wait for the disk before the model does."""


class Writer:
    """Streams tables to ``folder``; what it holds in memory does not grow with the trace.

    Compression runs in a thread, beside the model.  Files appear under their names when they are whole, and
    ``trace.json`` says so, so that a trace whose writing was cut short can be read up to its last whole file.

    Args:
        facts: what ``trace.json`` says besides the counts.

    Raises:
        ConfigError: the folder holds something that is no trace.  An older trace is replaced.
    """

    def __init__(self, folder: str | Path, side: tuple[str, ...], facts: Mapping[str, Any]) -> None:
        self.folder, self._facts = Path(folder), dict(facts)
        _clear(self.folder)
        self._files = {
            "tokens": _Parts(self.folder / "tokens", token_schema(side)),
            "routing": _Parts(self.folder / "routing", routing_schema()),
        }
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._drain, name="trace writer", daemon=True)
        self._note(complete=False)
        self._thread.start()

    def add(self, kind: str, table: Any) -> None:
        """Hand over a table of ``tokens`` or ``routing``; waits while the disk is too far behind.

        Raises:
            OSError: an earlier table could not be written.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((kind, table))

    def close(self, facts: Mapping[str, Any], complete: bool = True) -> None:
        """Write what is left.  Raises OSError when something could not be written."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._facts |= facts
        for parts in self._files.values():
            parts.finish()
        self._note(complete)

    def _drain(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # so that the model is not left waiting
            try:
                if self._files[item[0]].add(item[1]):
                    self._note(complete=False)
            except BaseException as error:
                self._error = error

    def _note(self, complete: bool) -> None:
        counts = {"num_tokens": self._files["tokens"].rows, "rows": self._files["routing"].rows}
        write_json(
            self.folder / "trace.json", {"schema": SCHEMA, "complete": complete, **counts, **self._facts}
        )


class _Parts:
    """Numbered files of one schema."""

    def __init__(self, folder: Path, schema: Any) -> None:
        self.folder, self.schema, self.rows = folder, schema, 0
        self._waiting: list[Any] = []
        self._waiting_rows = self._part = self._number = 0
        self._file: Any = None
        self._sink: Any = None
        folder.mkdir(parents=True)

    def add(self, table: Any) -> bool:
        """Returns whether a file was completed."""
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows < GROUP_ROWS:
            return False
        self._flush()
        if self._part < PART_ROWS:
            return False
        self._complete()
        return True

    def finish(self) -> None:
        if self._waiting_rows or not self._number:
            self._flush()
        if self._file is not None:
            self._complete()

    def _flush(self) -> None:
        pa, pq = arrow()
        if self._file is None:
            self._sink = pa.BufferOutputStream()
            self._file = pq.ParquetWriter(
                self._sink, self.schema, compression="zstd", use_dictionary=["layer"]
            )
        table = pa.concat_tables([self.schema.empty_table(), *self._waiting])
        self._file.write_table(table, row_group_size=GROUP_ROWS)
        self._part += self._waiting_rows
        self._waiting, self._waiting_rows = [], 0

    def _complete(self) -> None:
        self._file.close()
        write_atomically(self.folder / f"{self._number:05d}.parquet", self._sink.getvalue())
        self.rows += self._part
        self._file, self._sink, self._part, self._number = None, None, 0, self._number + 1


def _clear(folder: Path) -> None:
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; a trace is a folder, choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "trace.json").is_file():
            raise ConfigError(f"{folder} holds something that is no trace; choose another folder")
        (folder / "trace.json").unlink()  # first, so that half of a folder is not taken for a trace
        for name in ("tokens", "routing"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
