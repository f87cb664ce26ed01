"""Zero-shot tasks, scored by lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.data import TASKS, task_dir


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    include: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """``{task: {"acc", "acc_stderr", "n", ...}}`` by the harness's own scorer.

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
    if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
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
        embedded = set(tasks) <= {*TASKS, "libmoe_embedded"}
        manager = TaskManager(include_path=folders, include_defaults=not embedded and include is None)
        for task in tasks:
            if task not in manager.all_tasks:
                raise unknown("task", task, manager.all_tasks)
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        try:
            found = lm_eval.simple_evaluate(
                model=scorer,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                verbosity="ERROR",
            )
        except (ConnectionError, OSError) as error:
            raise DataError(
                f"the data of a task cannot be had: {' '.join(str(error).split())[:200]}"
            ) from None
    return {name: _row(found, name) for name in sorted(found["results"]) if name in found["n-samples"]}


def _row(found: dict[str, Any], name: str) -> dict[str, float]:
    row: dict[str, float] = {"n": found["n-samples"][name]["effective"]}
    for key, value in found["results"][name].items():
        metric, _, filtered = key.partition(",")
        if filtered == "none" and isinstance(value, (int, float)):
            row[metric] = float(value)
    if "acc" in row:
        # The standard error of a share of n right answers; the harness gives it only with bootstrapping on.
        row["acc_stderr"] = (row["acc"] * (1 - row["acc"]) / max(row["n"] - 1, 1)) ** 0.5
    return row


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and notices of the harness and of data loading."""
    before = {k: os.environ.get(k) for k in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")}
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets", "lm-eval")}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
