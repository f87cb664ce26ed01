"""Zero-shot tasks of a model that is in memory, scored by lm-evaluation-harness."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.core.errors import ConfigError, DataError


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

    For evaluations that last, :func:`libmoe.eval.harness.evaluate_tasks` keeps samples and resumes.

    Args:
        tasks: names of embedded tasks, of tasks in ``include``, or of any task the harness has (its data must
            then be in the local hub cache, or there must be a network).
        limit: documents per task.
        include: a folder with further task files (YAML).

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or a task is unknown.
        DataError: a task's data cannot be had, or the task fails.
    """
    if not tasks:
        return {}
    if model.get_output_embeddings() is None:
        raise ConfigError(f"{type(model).__name__} has no language-model head; zero-shot tasks need one")
    from libmoe.eval.evaluating import rows_of
    from libmoe.eval.harness.loading import load_tasks, task_manager

    task_manager(tasks, include)  # says what to install
    from libmoe.eval.harness.driver import evaluate_tasks, quiet
    from libmoe.eval.harness.lm import Scorer
    from libmoe.eval.harness.settings import Settings

    with quiet():
        loaded, _, failed = load_tasks(tasks, include=include)
        scorer = Scorer(model, tokenizer, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(limit=limit, batch_size=batch_size)
        found = evaluate_tasks(scorer, loaded, Path(folder), settings)
    for name, text in (failed | found.failed).items():
        raise DataError(f"task {name}: {text}")
    return rows_of(found.to_dict())
