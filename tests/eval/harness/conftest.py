"""Small tasks of every type, as files of the harness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.eval.harness import Evaluation, Settings, evaluate_tasks
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.loading import load_tasks

WORDS = "the sea was calm and a small boat went out to find the island where old men told of gold".split()

TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "last_word": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{passage}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
""",
    "sampled": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
repeats: 3
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: true, temperature: 1.0}
filter_list: [{name: first, filter: [{function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def documents(count: int) -> list[dict[str, Any]]:
    """Prompts of different lengths; three in a row share a passage."""
    made = []
    for i in range(count):
        start = WORDS[: 3 + (7 * i) % 11]
        choices = [f" {WORDS[(i + j) % len(WORDS)]}" for j in range(4)]
        made.append(
            {
                "context": f"{i} " + " ".join(start),
                "choices": choices,
                "gold": i % 4,
                "passage": " ".join(WORDS * (1 + i % 3)),
                "source": f"passage {i // 3}",
            }
        )
    return made


@pytest.fixture
def task_files(tmp_path: Path) -> Callable[..., Path]:
    """Write the task files over ``count`` documents; ``change`` may spoil them."""

    def write(count: int = 23, change: Callable[[list[dict[str, Any]]], None] | None = None) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        rows = documents(count)
        if change:
            change(rows)
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for name, text in TASKS.items():
            head = f"task: {name}\ndataset_path: json\ntest_split: test\nmetadata: {{version: 1}}\n"
            data = f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
            (folder / f"{name}.yaml").write_text(head + data + text.strip() + "\n")
        return folder

    return write


@pytest.fixture
def evaluate(tokenizer: Any, tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluate tasks from ``task_files`` into ``tmp_path / out``."""

    def run(
        model: nn.Module,
        folder: Path,
        names: list[str],
        out: str = "out",
        scorer: Any = None,
        clusters: dict[str, str] | None = None,
        identity: str = "",
        **settings: Any,
    ) -> Evaluation:
        loaded, groups, failed = load_tasks(names, include=folder)
        assert not failed
        options = Settings(**{"batch_size": 4} | settings)
        scorer = scorer or Scorer(model, tokenizer, options.batch_size)
        return evaluate_tasks(
            scorer, loaded, tmp_path / out, options, groups=groups, clusters=clusters, model=identity
        )

    return run
