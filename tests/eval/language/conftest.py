"""Small tasks of every kind, and a scorer without a model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


class ByteUniform:
    """A model that gives every byte 1/256, behind a tokenizer that is a regular expression."""

    backend = "causal"
    max_length = 10_000
    tokenizer = None

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[str]:
        return self.pattern.findall(text)

    def answer(self, kind: str, requests: list[Any], answers: Any, seed: int) -> list[tuple[float, bool]]:
        assert kind == "loglikelihood"
        found = []
        for request in requests:
            prompt, answer = request.args
            tokens = self.tok_encode(prompt + answer)[len(self.tok_encode(prompt)) :]
            found.append((-math.log(256) * sum(len(token.encode()) for token in tokens), False))
        return found


@pytest.fixture
def words() -> ByteUniform:
    return ByteUniform(r"\s*\S+|\s+")


@pytest.fixture
def characters() -> ByteUniform:
    return ByteUniform(r".")


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Any]:
    """A task of the harness over rows that the test gives."""

    def make(name: str, rows: list[dict[str, Any]], **config: Any) -> Any:
        from lm_eval.tasks import TaskManager

        from libmoe.eval.harness.driver import quiet

        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "fewshot_split": "test",
            **config,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
        with quiet():
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            return manager.load([name])["tasks"][name]

    return make


SUMS = [{"question": f"{i} plus {i}", "answer": f"twice {i} is {2 * i}", "part": i // 2} for i in range(6)]


@pytest.fixture
def sums(make_task: Callable[..., Any]) -> Any:
    """A task that generates."""
    return make_task(
        "sums",
        SUMS,
        output_type="generate_until",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {
                "name": "number",
                "filter": [{"function": "regex", "regex_pattern": r"(-?\d+)$"}, {"function": "take_first"}],
            },
            {"name": "none", "filter": [{"function": "take_first"}]},
        ],
    )


@pytest.fixture
def choices(make_task: Callable[..., Any]) -> Any:
    """A task with choices."""
    rows = [
        {"context": f"After {i} comes", "choices": [str(i), str(i + 1), "nothing"], "gold": 1}
        for i in range(6)
    ]
    return make_task(
        "choices",
        rows,
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        metric_list=[
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_mutual_info")
        ],
    )
