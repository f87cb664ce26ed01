"""Tasks of lmms-eval by name."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, unknown
from libmoe.eval.harness.loading import why as explain
from libmoe.eval.suites import task_folder
from libmoe.eval.vlm.adapters import silence

REASONING_TAGS = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
"""What lmms-eval's command takes from answers before they are scored, unless a task says otherwise."""

CHOICES = ("loglikelihood", "multiple_choice")
"""Kinds of tasks that lmms-eval has no chat form for."""


SEED = 1234
"""By which lmms-eval's command draws examples."""


@dataclass
class Loaded:
    """One task, or the tasks of a group.

    Attributes:
        tree: as lmms-eval nests groups and tasks.
        tasks: the tasks in it.
        failed: members of the group that could not be loaded, with the reason.
    """

    tree: dict[Any, Any]
    tasks: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)


class Loader:
    """lmms-eval's index of tasks, and the tasks made from it.

    Args:
        names: the tasks that will be wanted.
        model_name: the class that will be asked; tasks choose prompts by it.
        form: form of requests where a task leaves it open, ``chat`` or ``simple``.
        include: a folder with further task files.
        out: folder of the samples, beside which tasks write what is to be submitted to a server.
    """

    def __init__(
        self, names: Collection[str], model_name: str, form: str, include: str | None, out: Path
    ) -> None:
        import datasets
        import lmms_eval.api.task
        from lmms_eval import evaluator
        from lmms_eval.api.task import ConfigurableTask
        from lmms_eval.tasks import TaskManager
        from tenacity import stop_after_attempt

        self.form = form
        folders = [str(task_folder("lmms")), *([include] if include else [])]
        self._manager = TaskManager("ERROR", folders, include_defaults=False, model_name=model_name)
        if not set(names) <= set(
            self._manager.all_subtasks
        ):  # lmms-eval's own are thousands and take seconds to read
            self._manager = TaskManager("ERROR", folders, model_name=model_name)
        self._out = out
        silence(lmms_eval.api.task)
        # This process has threads, so its forks could wait forever for a lock that one of them held.
        for name in ("map", "filter"):
            setattr(datasets.Dataset, name, _in_this_process(getattr(datasets.Dataset, name)))
        # As lmms-eval's evaluator prepares for loading data.
        evaluator._enable_reentrant_filelocks()
        setattr(ssl.SSLContext, "__reduce__", lambda self: (ssl.SSLContext, (self.protocol,)))  # noqa: B010
        # What fails is not tried again five times, and says itself why.
        for method in (ConfigurableTask.download, ConfigurableTask.process_results):
            method.retry.stop, method.retry.reraise = stop_after_attempt(1), True

    @property
    def names(self) -> set[str]:
        return set(self._manager.all_tasks)

    def unknown(self, name: str) -> ConfigError:
        return unknown("vision-language task", name, self.names)

    def load(self, name: str) -> Loaded:
        """A task, or what can be loaded of a group."""
        try:
            tree, tasks = self._load(name)
        except Exception as error:  # no network, not in the cache, a package that only this task wants, ...
            members = self._members(name)
            if not members:
                return Loaded({}, {}, {name: self._why(error)})
            found = Loaded({}, {})
            for member in members:
                part = self.load(member)
                found.tree |= part.tree
                found.tasks |= part.tasks
                found.failed |= part.failed
            return found
        for leaf, task in tasks.items():
            task.args = argparse.Namespace(
                output_path=str(self._out / leaf), process_with_media=False, log_samples=False
            )
            task.set_fewshot_seed(SEED)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return Loaded(tree, tasks)

    def _load(self, name: str) -> tuple[dict[Any, Any], dict[str, Any]]:
        """The task or group as lmms-eval loads it, in a form that it has."""
        tree = self._manager.load_task_or_group([name], self.form)
        tasks = dict(_leaves(tree))
        if self.form == "chat" and any(task.OUTPUT_TYPE in CHOICES for task in tasks.values()):
            tree = self._manager.load_task_or_group([name], "simple")
            tasks = dict(_leaves(tree))
        return tree, tasks

    def _members(self, name: str) -> list[str]:
        """Names of what a group or tag holds; nothing for a task."""
        kind = self._manager.task_index[name]["type"]
        if kind == "tag":
            return list(self._manager.task_index[name]["task"])
        members = self._manager._get_config(name)["task"] if kind == "group" else []
        return [member if isinstance(member, str) else member["task"] for member in members]

    @staticmethod
    def _why(error: BaseException) -> str:
        if isinstance(error, ModuleNotFoundError):
            return f"needs the package {error.name}, which is not in the vision environment"
        return explain(error)


def _in_this_process(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **(kwargs | {"num_proc": None}))

    return alone


def form_of(task: Any) -> str:
    """The form of a task's requests."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    return "chat" if isinstance(task, ConfigurableMessagesTask) else "simple"


def _leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value[1] if isinstance(value, tuple) else value
