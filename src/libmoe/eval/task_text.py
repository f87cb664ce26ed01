"""Text of tasks: the prompts that a harness would score, each with its right answer, as padded batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import DataError
from libmoe.eval.routing import right_answer


def task_batches(
    model: nn.Module, tokenizer: Any, names: Sequence[str], documents: int, longest: int, batch_size: int
) -> tuple[list[dict[str, Tensor]], list[str]]:
    """``documents`` of each task, cut on the left to ``longest`` tokens and padded on the right.

    The model scores them first, since samples of some tasks name the right answer by its likelihood alone.

    Returns:
        Batches with ``input_ids``, ``attention_mask`` and ``task`` (all ``[B, L]``; ``task`` counts into the names),
        and the names of the tasks.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, or a task is unknown.
        DataError: a task's data cannot be had, or it fails.
    """
    from libmoe.eval.harness.driver import evaluate_tasks, quiet
    from libmoe.eval.harness.lm import Scorer
    from libmoe.eval.harness.loading import load_tasks, task_manager
    from libmoe.eval.harness.samples import SampleFile
    from libmoe.eval.harness.settings import Settings

    task_manager(names, None)  # says what to install
    with quiet():
        loaded, _, failed = load_tasks(names, include=None)
        scorer = Scorer(model, tokenizer, batch_size)
    texts: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(limit=documents, batch_size=batch_size)
        found = evaluate_tasks(scorer, loaded, Path(folder), settings)
        for name, text in (failed | found.failed).items():
            raise DataError(f"task {name}: {text}")
        for place, name in enumerate(loaded):
            columns = ["target", "arguments", "responses", "error"]
            rows = SampleFile(Path(folder) / "samples" / name).read(columns)
            whole = (row for row in rows if row["error"] is None)
            texts += [(place, "".join(right_answer(row))) for row in islice(whole, documents)]
    encoded = [(place, tokenizer(text)["input_ids"][-longest:]) for place, text in texts]
    cuts = range(0, len(encoded), batch_size)
    return [_padded(encoded[i : i + batch_size]) for i in cuts], list(loaded)


def _padded(rows: Sequence[tuple[int, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(ids) for _, ids in rows)
    ids_BL = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows])
    size_B = torch.tensor([len(ids) for _, ids in rows])
    task_B = torch.tensor([place for place, _ in rows])
    mask_BL = (torch.arange(longest) < size_B[:, None]).long()
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "task": task_B[:, None].expand(-1, longest)}
