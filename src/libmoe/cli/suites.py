"""``libmoe eval --list`` and ``libmoe eval --check-mirror``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.output import emit_json, say, table


def show_tasks(
    names: Sequence[str] | None, data_dir: Path | None, include: Path | None, *, as_json: bool
) -> None:
    """List tasks (all of the catalogue without ``names``) with the file that each expects, and whether it is there."""
    from libmoe.eval.harness.driver import quiet
    from libmoe.eval.mirror.check import files_of
    from libmoe.eval.mirror.expected import expected
    from libmoe.eval.suites import catalogue, resolve

    tasks = resolve(names, include, judge=True, code=True) if names else catalogue()
    rows = []
    with quiet():
        for task in tasks:
            wanted = expected(task, include)
            files = [want.file for want in wanted if want.file is not None]
            found = (
                [bool(files_of(data_dir, want)) for want in wanted if want.file is not None]
                if data_dir
                else []
            )
            rows.append({
                "task": task.name,
                "harness": task.harness,
                "skill": task.skill,
                "type": task.type,
                "metric": task.metric,
                "needs": [name for name in ("judge", "code") if getattr(task, name)],
                "files": files,
                "there": found,
            })  # fmt: skip
    if as_json:
        emit_json(rows)
        return
    columns = ["task", "skill", "type", "metric", "expected file", *(["there"] if data_dir else [])]
    table(columns, [_line(row, data_dir is not None) for row in rows])
    say(f"{len(rows)} tasks")


def check_mirror(folder: Path, names: Sequence[str] | None, include: Path | None, *, as_json: bool) -> bool:
    """Check the files of ``folder``; returns whether all is well.

    Without ``names`` every task of the catalogue that has a file is checked, and the others are only counted.
    """
    from libmoe.eval.mirror.check import OWN, check
    from libmoe.eval.suites import catalogue, resolve

    tasks = resolve(names, include, judge=True, code=True) if names else catalogue()
    found = list(check(folder, tasks, include))
    absent = [item for item in found if not item.there]
    shown = found if names else [item for item in found if item.there and item.file != OWN]
    if as_json:
        emit_json(
            {
                "checked": [vars(item) for item in shown],
                "without files": sorted({item.task for item in absent}),
            }
        )
    else:
        lines = [
            [i.task, i.leaf, i.file, "-" if i.rows is None else i.rows, i.problem or "ok"] for i in shown
        ]
        table(["task", "part", "file", "rows", "state"], lines)
        if not names:
            say(f"{len({item.task for item in absent})} tasks have no files there")
    return bool(shown) and all(item.problem is None for item in shown)


def _line(row: dict[str, Any], mirror: bool) -> list[Any]:
    files, found = row["files"], row["there"]
    more = f" (+{len(files) - 1})" if len(files) > 1 else ""
    needs = f" [{', '.join(row['needs'])}]" if row["needs"] else ""
    line = [
        row["task"] + needs,
        row["skill"],
        row["type"],
        row["metric"],
        (files[0] if files else "-") + more,
    ]
    if mirror:
        line.append("yes" if all(found) else f"{sum(found)} of {len(found)}" if any(found) else "no")
    return line
