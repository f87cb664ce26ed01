"""A batch that memory does not suffice for is asked again in halves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from libmoe.core.errors import DataError
from libmoe.eval.harness.answers import Answers
from libmoe.eval.vlm import driver
from libmoe.eval.vlm.adapters import Adapter


class Scarce(Adapter):
    """Memory for ``room`` requests; answers with the prompt."""

    def __init__(self, batch_size: int, room: int) -> None:
        self.batch_size, self.room = batch_size, room
        self.notes: list[str] = []
        self._classes: dict[str, Any] = {}
        self.sizes: list[int] = []

    def ask(self, form: str, kind: str, requests: Any, seed: int) -> list[Any]:
        self.sizes.append(len(requests))
        if len(requests) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [request.args[0] for request in requests]


class Task:
    def __init__(self) -> None:
        self.instances: list[Any] = []

    def build_all_requests(self, rank: int, world_size: int) -> None:
        self.instances = [
            SimpleNamespace(
                args=(f"question {i}", {"max_new_tokens": 4}), doc_id=i, idx=0, request_type="generate_until",
                repeats=1, resps=[], token_counts=[],
            )
            for i in range(10)
        ]  # fmt: skip


@pytest.fixture(autouse=True)
def _form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "form_of", lambda task: "chat")


def test_batches_are_halved_until_they_fit(tmp_path: Path) -> None:
    adapter, task = Scarce(8, room=3), Task()
    answers = Answers(tmp_path / "answers.jsonl")
    broken = driver._Slice(adapter, task, None, range(10), 0).answer(answers, lambda count: None)  # type: ignore[arg-type]
    assert not broken
    assert [r.resps for r in task.instances] == [[f"question {i}"] for i in range(10)]
    assert adapter.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert adapter.notes == [
        "out of memory with batches of 8; went on with 4",
        "out of memory with batches of 4; went on with 2",
    ]


def test_one_request_too_many_fails_the_task(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers.jsonl")
    slice_ = driver._Slice(Scarce(2, room=0), Task(), None, range(10), 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="memory does not suffice for a single request"):
        slice_.answer(answers, lambda count: None)


def test_answers_that_are_there_are_not_asked_for_again(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers.jsonl")
    driver._Slice(Scarce(4, room=4), Task(), None, range(10), 0).answer(answers, lambda count: None)  # type: ignore[arg-type]
    answers.close()
    adapter = Scarce(4, room=4)
    driver._Slice(adapter, Task(), None, range(10), 0).answer(Answers(answers.path), lambda count: None)  # type: ignore[arg-type]
    assert not adapter.sizes
