"""Questions to the results store that can only read."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any

from libmoe.core.errors import ConfigError, unknown
from libmoe.eval.results.columns import RESULTS

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""What a question may make SQLite do."""


def run_query(
    connection: sqlite3.Connection,
    where: str | None,
    columns: Sequence[str] | None,
    order: Sequence[str],
    limit: int | None,
) -> list[dict[str, Any]]:
    """See :meth:`libmoe.eval.results.Results.query`."""
    chosen = [known_column(name) for name in columns] if columns is not None else list(RESULTS)
    if limit is not None and limit < 0:
        raise ConfigError(f"limit={limit} must be at least 0")
    statement = f"SELECT {', '.join(chosen)} FROM results"
    if where is not None:
        statement += f" WHERE (\n{where}\n)"
    if order:
        statement += f" ORDER BY {', '.join(map(_ordered, order))}"
    if limit is not None:
        statement += f" LIMIT {int(limit)}"
    connection.set_authorizer(_reading_only)
    try:
        return [dict(zip(chosen, row)) for row in connection.execute(statement)]
    # One kind of error for a second statement in Python 3.11, another from 3.12 on, a third for a null character.
    except (sqlite3.Warning, sqlite3.ProgrammingError, sqlite3.OperationalError, ValueError) as error:
        if where is None:
            raise
        raise _explained(where, str(error)) from None
    except sqlite3.DatabaseError as error:
        if "not authorized" not in str(error) and "prohibited" not in str(error):
            raise
        raise ConfigError(f"where={where!r}: a condition can only read") from None


def known_column(name: str) -> str:
    """``name``, if it is a column of the view.

    Raises:
        ConfigError: it is not; names the nearest.
    """
    if name.strip() not in RESULTS:
        raise unknown("column", name.strip(), RESULTS)
    return name.strip()


def _ordered(item: str) -> str:
    name, _, direction = item.strip().partition(" ")
    if direction.strip().lower() not in ("", "asc", "desc"):
        raise ConfigError(f"order {item!r}: give a column, with 'asc' or 'desc' after it if need be")
    return f"{known_column(name)} {direction.strip()}".strip()


def _reading_only(action: int, *rest: str | None) -> int:
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY


def _explained(where: str, message: str) -> ConfigError:
    missing = re.search(r"no such column: (?:results\.)?(.+)", message)
    if missing:
        return unknown("column", missing[1], RESULTS)
    if "one statement" in message:
        return ConfigError(f"where={where!r}: only a condition is allowed, not a second statement")
    return ConfigError(
        f"where={where!r} is no condition in SQL ({message}); for example \"task = 'arc_easy'\""
    )
