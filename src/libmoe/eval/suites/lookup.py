"""The catalogue, loaded once; suites and tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from libmoe.core.errors import unknown
from libmoe.eval.suites.entry import Suite, SuiteTask, read_catalogue

OUTPUT_TYPES = {"loglikelihood_rolling": "rolling", "generate_until": "generate"}
"""Output types of lm-evaluation-harness that the catalogue calls by another name."""


def catalogue() -> tuple[SuiteTask, ...]:
    """All tasks, in the order of the file: by harness and skill."""
    return _read()[0]


def suites() -> dict[str, Suite]:
    """All suites by name."""
    return dict(_read()[1])


def task_folder(harness: str) -> Path:
    """The folder of our own task files for ``lm`` or ``lmms``, for benchmarks that the harness does not have."""
    return Path(str(resources.files("libmoe.eval.suites"))) / "tasks" / harness


def resolve(
    names: Sequence[str], include: str | Path | None = None, *, judge: bool = False, code: bool = False
) -> list[SuiteTask]:
    """The tasks behind names of suites, of the catalogue's tasks, and of any further task of lm-evaluation-harness.

    Tasks that want a judge model or run code that the model wrote are left out of suites unless asked for; named by
    themselves they are always there.  Each task comes once, in the order of the names.

    Args:
        include: a folder with further task files (YAML) of lm-evaluation-harness.
        judge, code: keep such tasks in suites.

    Raises:
        ConfigError: a name is unknown; names the nearest.
    """
    tasks, known = _read()
    by_name = {task.task: task for task in reversed(tasks)} | {task.name: task for task in tasks}
    found: dict[tuple[str, str], SuiteTask] = {}
    for name in names:
        if name in known:
            members = [by_name[member] for member in known[name].tasks]
            chosen = [t for t in members if (judge or not t.judge) and (code or not t.code)]
        else:
            chosen = [by_name[name]] if name in by_name else [_of_harness(name, include)]
        for task in chosen:
            found.setdefault((task.harness, task.task), task)
    return list(found.values())


def _of_harness(name: str, include: str | Path | None) -> SuiteTask:
    """A task that the catalogue does not have: what the harness says of it."""
    from libmoe.eval.harness.loading import task_manager
    from libmoe.eval.suites.definitions import definitions, metric_keys

    manager = task_manager([name], include)
    if name not in manager.all_tasks:
        ours = [*suites(), *(task.name for task in catalogue())]
        raise unknown("suite or task", name, {*ours, *manager.all_tasks})
    config = next(definitions(name, manager)).config
    kind = str(config.get("output_type", "generate_until"))
    return SuiteTask(
        name=name,
        harness="lm",
        task=name,
        skill="other",
        type=OUTPUT_TYPES.get(kind, kind),
        metric=metric_keys(config)[0],
        shots=int(config.get("num_fewshot") or 0),
        code=bool(config.get("unsafe_code")),
    )


@cache
def _read() -> tuple[tuple[SuiteTask, ...], dict[str, Suite]]:
    text = resources.files("libmoe.eval.suites").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return read_catalogue(yaml.safe_load(text))
