"""Tasks of the harness by name, their data from the hub or from a local mirror."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.data.tasks import task_dir
from libmoe.eval.harness.documents import reason
from libmoe.eval.harness.tolerant import Absent, tolerant
from libmoe.eval.suites import task_folder


def task_manager(names: Collection[str] = (), include: str | Path | None = None) -> Any:
    """The harness's index of tasks: the embedded ones, those in ``include``, and its own where they are needed.

    Its own are thousands and take seconds to read.

    Raises:
        ConfigError: the harness is not installed.
    """
    few = _manager(str(include) if include else None, False)
    if names and set(names) <= set(few.all_tasks):
        return few
    return _manager(str(include) if include else None, True)


@lru_cache(maxsize=8)
def _manager(include: str | None, defaults: bool) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("zero-shot tasks need lm-evaluation-harness: pip install 'libmoe[eval]'") from None
    folders = [str(task_dir()), str(task_folder("lm")), *([include] if include else [])]
    return TaskManager(include_path=folders, include_defaults=defaults)


def load_tasks(
    names: Sequence[str],
    *,
    include: str | Path | None = None,
    data: AbstractContextManager | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """``(tasks, groups, failed)``: leaf tasks and groups by name, and why others could not be loaded.

    Args:
        names: tasks or groups.
        include: a folder with further task files (YAML).
        data: entered while data are loaded; a mirror makes the harness read local files.

    Raises:
        ConfigError: the harness is not installed, or a name is unknown.
    """
    manager = task_manager(names, include)
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task", name, manager.all_tasks)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with data or nullcontext(), tolerant(manager, why) as absent:
        for name in dict.fromkeys(names):
            absent.clear()
            found = manager.load([name])
            tasks |= {name: task for name, task in found["tasks"].items() if not isinstance(task, Absent)}
            failed |= absent
            if not absent:
                groups |= found["groups"]
            elif name not in absent:
                failed[name] = (
                    f"{len(absent)} of its parts could not be loaded, so it has no score of its own"
                )
    return tasks, groups, failed


def why(error: BaseException) -> str:
    """Why the data of a task cannot be had, in a line."""
    return str(error) if isinstance(error, DataError) else f"its data cannot be had: {reason(error)}"
