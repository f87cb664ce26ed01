"""The catalogue as a page: one table per harness, and the page kept in step with it."""

from __future__ import annotations

from pathlib import Path

from libmoe.core.errors import DataError
from libmoe.core.files import write_atomically
from libmoe.eval.suites.entry import HARNESSES, SKILLS, SuiteTask
from libmoe.eval.suites.lookup import catalogue

BEGIN = "<!-- The tables below are written by libmoe.eval.suites.table from the catalogue. -->"


def tables() -> str:
    """Markdown tables of all tasks, by harness and skill."""
    parts = []
    for harness, what in HARNESSES.items():
        rows = [
            _row(task)
            for skill in SKILLS
            for task in catalogue()
            if (task.harness, task.skill) == (harness, skill)
        ]
        head = "| skill | name | task | metric | chance | clusters |\n|---|---|---|---|---|---|\n"
        parts.append(f"### {what[0].upper()}{what[1:]}\n\n{head}" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(task: SuiteTask) -> str:
    needs = " (judge)" if task.judge else " (runs code)" if task.code else ""
    chance = "" if task.chance is None else f"{task.chance:g}"
    cluster = f"`{task.cluster}`" if task.cluster else ""
    return f"| {task.skill} | {task.name}{needs} | `{task.task}` | `{task.metric}` | {chance} | {cluster} |"


def write_tables(page: str | Path) -> None:
    """Replace what follows the mark in ``page``.

    Raises:
        DataError: the page has no mark.
    """
    page = Path(page)
    text, mark, _ = page.read_text(encoding="utf-8").partition(BEGIN)
    if not mark:
        raise DataError(f"{page} has no line {BEGIN}")
    write_atomically(page, f"{text}{BEGIN}\n\n{tables()}".encode())
