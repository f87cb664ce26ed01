"""One file with the scores of all evaluations: SQLite, without a server, safe under several processes.

The evaluation folders are the truth; the store is an index of them that can be thrown away and made again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.results.columns import EVALUATION, FORMAT, SCORE, schema
from libmoe.eval.results.facts import FILE, Row, evaluation_row, find_evaluation, read_evaluation, score_rows
from libmoe.eval.results.query import run_query

WAIT = 60.0
"""Seconds to wait for another process that writes."""


def default_store() -> Path:
    """``$LIBMOE_RESULTS``, or ``runs/results.db``."""
    return Path(os.environ.get("LIBMOE_RESULTS") or Path("runs") / "results.db")


class Results:
    """The results store in the file ``path``; made when something is added."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_store()

    def add(self, folder: str | Path) -> int:
        """Record the evaluation in ``folder``, in place of what was recorded of it before.

        Returns:
            How many scores it has.

        Raises:
            DataError: the folder holds no evaluation, or the file is no store.
        """
        place = find_evaluation(folder)
        facts = read_evaluation(place)
        try:
            about, scores = evaluation_row(place, facts), list(score_rows(facts))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{place / FILE} is not what an evaluation writes: {error!r}") from None
        with self._writing() as connection:
            names = [column.name for column in EVALUATION]
            replaced = ", ".join(f"{name} = excluded.{name}" for name in names)
            (number,) = connection.execute(
                f"INSERT INTO evaluations ({', '.join(names)}) VALUES ({_marks(len(names))}) "
                f"ON CONFLICT (folder) DO UPDATE SET {replaced} RETURNING id",
                _values(about, names),
            ).fetchone()
            connection.execute("DELETE FROM scores WHERE evaluation = ?", (number,))
            names = [column.name for column in SCORE]
            connection.executemany(
                f"INSERT INTO scores (evaluation, {', '.join(names)}) VALUES ({_marks(len(names) + 1)})",
                [(number, *_values(row, names)) for row in scores],
            )
        return len(scores)

    def index(self, folders: Iterable[str | Path]) -> tuple[list[Path], dict[Path, str]]:
        """Record every evaluation at or below ``folders`` and forget those below them that are gone.

        Returns:
            The evaluations recorded, and why others could not be.

        Raises:
            DataError: a folder is not there.
        """
        recorded: list[Path] = []
        failed: dict[Path, str] = {}
        for folder in map(Path, folders):
            if not folder.is_dir():
                raise DataError(f"{folder} is no folder")
            for path in sorted(folder.rglob(FILE)):
                try:
                    self.add(path.parent)
                except DataError as error:
                    failed[path.parent] = str(error)
                else:
                    recorded.append(path.parent)
            self._forget_gone(folder.resolve())
        return recorded, failed

    def query(
        self,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[Row]:
        """Rows of the view ``results``; nothing can be changed by what is asked.

        Args:
            where: a condition in SQL, e.g. ``"task = 'arc_easy' and value > 0.5"``; ``None`` for all.
            columns: their names; ``None`` for all, see :data:`libmoe.eval.results.RESULTS`.
            order: names of columns, each with `` desc`` after it if need be.
            limit: rows at most.

        Raises:
            DataError: there is no store yet.
            ConfigError: an unknown column (names the nearest), or a condition that is none.
        """
        if not self.path.is_file():
            raise DataError(
                f"there is no results store {self.path}; record evaluations with: libmoe results --add FOLDER"
            )
        with self._open(f"{self.path.resolve().as_uri()}?mode=ro") as connection:
            self._check(connection)
            return run_query(connection, where, columns, order, limit)

    def _forget_gone(self, below: Path) -> None:
        if not self.path.is_file():
            return
        with self._writing() as connection:
            known = connection.execute("SELECT id, folder FROM evaluations").fetchall()
            gone = [
                (number,)
                for number, folder in known
                if Path(folder).is_relative_to(below) and not (Path(folder) / FILE).is_file()
            ]
            connection.executemany("DELETE FROM evaluations WHERE id = ?", gone)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One short transaction; other processes wait for it, readers see what was there before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open(self.path.resolve().as_uri()) as connection:
            _share(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in schema():
                        connection.execute(statement)
                self._check(connection)
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self, uri: str) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None)
            ) as connection:
                yield connection
        except sqlite3.Error as error:
            raise DataError(f"results store {self.path}: {error}") from None

    def _check(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != FORMAT:
            raise ConfigError(
                f"{self.path} has format {found}, not {FORMAT}: delete it and record the evaluations again with "
                "libmoe results --add FOLDER"
            )


def _share(connection: sqlite3.Connection) -> None:
    """Readers do not wait for the writer.  Where the journal changes, SQLite itself does not wait for other writers."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _values(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in names)
