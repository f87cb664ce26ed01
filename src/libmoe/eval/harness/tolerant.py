"""Loading tasks of which a document or a part is broken, as far as that can be done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from libmoe.eval.harness.documents import isolate

ATTEMPTS = 8
"""While it builds a task, the harness tries the first document; so many of the first may be broken."""

LEFT_OUT = "left_out"
"""Attribute of a task: documents that it could not prepare, by number, with the reason."""


@dataclass(frozen=True)
class Absent:
    """In place of a part of a group that could not be loaded."""

    task_name: str


@contextlib.contextmanager
def tolerant(manager: Any, explain: Callable[[BaseException], str]) -> Iterator[dict[str, str]]:
    """While the block runs, ``manager`` loads what it can; why parts of groups could not be is in the yielded dict.

    Args:
        manager: the harness's task manager.
        explain: an error in a line.
    """
    failed: dict[str, str] = {}
    build = manager._factory._build_task

    def build_or_note(entry: Any, overrides: Any) -> Any:
        try:
            return _build(build, entry, overrides)
        except Exception as error:  # no network, not in the cache, a data set that wants to run code, ...
            failed[(overrides or {}).get("task", entry.name)] = explain(error)
            return Absent((overrides or {}).get("task", entry.name))

    with mock.patch.object(manager._factory, "_build_task", build_or_note):
        yield failed


def _build(build: Callable[[Any, Any], Any], entry: Any, overrides: Any) -> Any:
    """The task; where that fails, without rows that it cannot prepare, and on its first document that is sound."""
    from lm_eval.api.task import ConfigurableTask, Task

    try:
        return build(entry, overrides)
    except Exception as error:
        first = error
    download, eval_docs = ConfigurableTask.download, Task.eval_docs.fget

    def forgiving_download(task: Any, *args: Any, **kwargs: Any) -> None:
        download(task, *args, **kwargs)
        if task.config.process_docs is not None:
            task.config.process_docs = _forgiving(task, task.config.process_docs)

    for skipped in range(ATTEMPTS):
        reached = False

        def documents(task: Any, skipped: int = skipped) -> Any:
            nonlocal reached
            found = eval_docs(task)
            reached = True
            return found.select(range(skipped, len(found))) if skipped else found

        patches = (
            mock.patch.object(Task, "eval_docs", property(documents)),
            mock.patch.object(ConfigurableTask, "download", forgiving_download),
        )
        try:
            with patches[0], patches[1]:
                return build(entry, overrides)
        except Exception:
            if not reached:  # it is not about a document
                break
    raise first


def _forgiving(task: Any, prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``prepare`` on all rows, or without those on which it fails."""

    def prepared(rows: Any) -> Any:
        try:
            return prepare(rows)
        except Exception:
            good, broken = isolate(prepare, rows)
            if not len(good):
                raise
            setattr(task, LEFT_OUT, broken)
            return prepare(good)

    return prepared
