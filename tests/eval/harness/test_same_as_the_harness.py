"""The scores are those of lm-evaluation-harness's own command, to the last digit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from torch import nn

NAMES = ["choose", "last_word", "text", "write"]


@pytest.fixture
def saved(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> Path:
    dense.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(ours: Any, theirs: dict[str, Any]) -> int:
    """How many metrics were compared."""
    for metric in ours.metrics:
        assert metric.value == theirs[f"{metric.name},{metric.filter}"], metric.name
    return len(ours.metrics)


def test_a_standard_model_scores_as_by_the_harnesss_own_command(
    saved: Path, dense: nn.Module, task_files: Callable, evaluate: Callable, tmp_path: Path
) -> None:
    folder = task_files()
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={saved}",
        "--tasks", "last_word", "--include_path", str(folder), "--device", "cpu", "--batch_size", "4",
        "--output_path", str(tmp_path / "theirs"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (file,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]["last_word"]
    assert same(evaluate(dense, folder, ["last_word"]).tasks["last_word"], theirs) == 2


@pytest.mark.parametrize("shots", [None, 2])
def test_every_type_of_task_scores_as_by_what_that_command_calls(
    shots: int | None, saved: Path, dense: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    ours = evaluate(dense, folder, NAMES, shots=shots)
    compared = 0
    for name in NAMES:  # by itself: the harness puts the requests of all tasks into the same batches
        theirs = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(saved)},
            tasks=[name],
            num_fewshot=shots,
            task_manager=manager,
            batch_size=4,
            device="cpu",
            bootstrap_iters=0,
            log_samples=False,
        )["results"][name]
        compared += same(ours.tasks[name], theirs)
    assert compared == 2 + 2 + 3 + 2


def test_examples_in_the_prompt_do_not_depend_on_slices(
    dense: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    whole = evaluate(dense, folder, ["last_word"], out="whole", shots=2).tasks["last_word"]
    sliced = evaluate(dense, folder, ["last_word"], out="sliced", shots=2, slice_size=7).tasks["last_word"]
    for name in ("perplexity", "acc"):
        assert sliced.metric(name).value == pytest.approx(whole.metric(name).value, rel=1e-5)
