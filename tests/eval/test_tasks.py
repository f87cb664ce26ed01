"""Zero-shot tasks give what lm-evaluation-harness gives for the same model, to the last digit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import TASKS, task_dir
from libmoe.eval.tasks import run_tasks


def test_the_harness_itself_gives_the_same_for_the_saved_folder(
    dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    dense.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path)},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(task_dir()), include_defaults=False),
        limit=12,
        batch_size=8,
        device="cpu",
        bootstrap_iters=100,
        log_samples=False,
    )["results"]
    ours = run_tasks(dense, tokenizer, TASKS, limit=12, batch_size=32)
    assert sorted(ours) == sorted(TASKS)
    for task, row in ours.items():
        assert row["n"] == 12
        for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
            assert row[metric] == theirs[task][f"{metric},none"], (task, metric)
    assert len({row["acc"] for row in ours.values()}) > 1


def test_the_standard_error_is_that_of_a_mean_of_n_right_or_wrong_answers(
    moe: nn.Module, tokenizer: Any
) -> None:
    row = run_tasks(moe, tokenizer, ["moe_domain"], limit=20)["moe_domain"]
    assert 0 < row["acc"] < 1
    assert row["acc_stderr"] == pytest.approx(math.sqrt(row["acc"] * (1 - row["acc"]) / (20 - 1)))


def test_one_document_has_no_standard_error(moe: nn.Module, tokenizer: Any) -> None:
    row = run_tasks(moe, tokenizer, ["moe_cloze"], limit=1)["moe_cloze"]
    assert row["n"] == 1 and "acc" in row and "acc_stderr" not in row


def test_a_group_stands_for_its_tasks(moe: nn.Module, tokenizer: Any) -> None:
    assert sorted(run_tasks(moe, tokenizer, ["libmoe_embedded"], limit=2)) == sorted(TASKS)


def own_task(folder: Path, data: Path) -> None:
    (folder / "mine.yaml").write_text(
        f"""task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 2
fewshot_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
"""
    )


def test_a_task_of_ones_own_with_examples_in_the_prompt(
    moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    items = [{"context": f"{i} plus one is", "choices": [" odd", " even"], "gold": i % 2} for i in range(8)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, items)))
    own_task(tmp_path, tmp_path / "mine.jsonl")
    first, again = (run_tasks(moe, tokenizer, ["mine"], include=tmp_path) for _ in range(2))
    assert first == again and first["mine"]["n"] == 8


def test_an_unknown_task_and_missing_data_are_named(moe: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    own_task(tmp_path, tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match=r"unknown task 'moe_clozee'; did you mean 'moe_cloze'\?"):
        run_tasks(moe, tokenizer, ["moe_clozee"], include=tmp_path)
    with pytest.raises(DataError, match=r"task mine: its data cannot be had: .*absent\.jsonl"):
        run_tasks(moe, tokenizer, ["mine"], include=tmp_path)


def test_a_model_without_a_head_is_refused(tokenizer: Any, moe: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no language-model head"):
        run_tasks(moe.model, tokenizer, ["moe_cloze"])


def test_nothing_to_do(moe: nn.Module, tokenizer: Any) -> None:
    assert run_tasks(moe, tokenizer, []) == {}
