"""Zero-shot tasks, scored by lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.data.tasks import GROUP, TASKS, task_dir

FEWSHOT_SEED = 1234
"""The harness's own default: tasks with examples in the prompt draw the same ones everywhere."""
BOOTSTRAP = 100
"""Resamples for the standard errors of metrics that have no formula; accuracies have one."""


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    include: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """``{task: {"n", "acc", "acc_stderr", "acc_norm", ...}}`` by the harness's own requests and scorer.

    Args:
        tasks: names of embedded tasks, of tasks in ``include``, or of any task the harness has (its data must
            then be in the local hub cache, or there must be a network).
        limit: documents per task.
        include: a folder with further task files (YAML).

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or a task is unknown.
        DataError: a task's data cannot be had.
    """
    if not tasks:
        return {}
    if model.get_output_embeddings() is None:
        raise ConfigError(f"{type(model).__name__} has no language-model head; zero-shot tasks need one")
    with _quiet():
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise ConfigError(
                "zero-shot tasks need lm-evaluation-harness: pip install 'libmoe[eval]'"
            ) from None
        folders = [str(task_dir()), *([str(include)] if include else [])]
        # The harness's own index has thousands of tasks; it is only read when one of them is asked for.
        embedded = set(tasks) <= {*TASKS, GROUP}
        manager = TaskManager(include_path=folders, include_defaults=not embedded and include is None)
        for task in tasks:
            if task not in manager.all_tasks:
                raise unknown("task", task, manager.all_tasks)
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        for request in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            silent = partial(getattr(scorer, request), disable_tqdm=not sys.stderr.isatty())
            setattr(scorer, request, silent)
        load = getattr(manager, "load", None) or manager.load_task_or_group  # older releases
        try:
            loaded = load(list(tasks))
        except Exception as error:  # no network, not in the cache, a data set that wants to run code, ...
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"the data of {', '.join(tasks)} cannot be had: {reason}") from error
        for task in _leaves(loaded.get("tasks", loaded)):
            task.set_fewshot_seed(FEWSHOT_SEED)
        # Not simple_evaluate: that also lists the packages and the git state of this machine, which takes longer than
        # a small task and complains where there is no repository.
        found = lm_eval.evaluate(scorer, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
    return {name: _row(found, name) for name in sorted(found["results"]) if name in found["n-samples"]}


def _leaves(loaded: Mapping[Any, Any]) -> Iterator[Any]:
    """The tasks inside groups inside groups."""
    for value in loaded.values():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield value


def _row(found: dict[str, Any], name: str) -> dict[str, float]:
    """Unfiltered metrics of a task under their plain names; a standard error from one document does not exist."""
    row: dict[str, float] = {"n": found["n-samples"][name]["effective"]}
    for key, value in found["results"][name].items():
        metric, _, filtered = key.partition(",")
        if filtered == "none" and isinstance(value, (int, float)):
            row[metric] = float(value)
    return row


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness and the loading of data from saying what they do."""
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
