"""Interrupted anywhere, an evaluation goes on with the next batch and ends with the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.samples import SampleFile

ALL = ["choose", "last_word", "text", "write", "sampled"]


class Interrupted(Scorer):
    """Is interrupted before one of its calls of the model."""

    calls = 0
    at = -1

    def _count(self) -> None:
        self._commit()  # what came before was whole
        type(self).calls += 1
        if type(self).calls == type(self).at:
            raise KeyboardInterrupt

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return super()._model_generate(*args, **kwargs)


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: list(SampleFile(out / "samples" / name).read()) for name in ALL}


def test_interrupted_and_resumed_nothing_is_lost_and_nothing_changes(
    moe: nn.Module, tokenizer: Any, task_files: Callable, evaluate: Callable, tmp_path: Path
) -> None:
    folder = task_files()
    options = {"slice_size": 10, "shots": 1}
    Interrupted.calls, Interrupted.at = 0, -1
    whole = evaluate(moe, folder, ALL, out="whole", scorer=Interrupted(moe, tokenizer, 4), **options)
    needed = Interrupted.calls
    Interrupted.calls, interruptions = 0, 0
    chance = random.Random(0)
    while True:
        Interrupted.at = Interrupted.calls + chance.randint(2, 9)
        try:
            resumed = evaluate(moe, folder, ALL, out="cut", scorer=Interrupted(moe, tokenizer, 4), **options)
        except KeyboardInterrupt:
            interruptions += 1
        else:
            break
    assert interruptions > 5
    assert Interrupted.calls == needed + interruptions  # only the calls that were cut off are made again
    assert resumed == whole
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert not list((tmp_path / "cut" / "answers").iterdir())


def test_what_is_finished_is_not_computed_again(
    moe: nn.Module, tokenizer: Any, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    first = evaluate(moe, folder, ["choose"])
    Interrupted.calls, Interrupted.at = 0, -1
    again = evaluate(moe, folder, ["choose"], scorer=Interrupted(moe, tokenizer, 4))
    assert Interrupted.calls == 0 and again == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 2}, r"holds results with shots=None, not 2; give another --out, or --overwrite"),
        ({"identity": "other"}, r"holds results with model='', not 'other'"),
        ({"limit": 3}, r"limit=None, not 3"),
    ],
)
def test_samples_of_other_settings_or_weights_are_never_mixed(
    change: dict[str, Any], message: str, moe: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    evaluate(moe, folder, ["choose"])
    with pytest.raises(ConfigError, match=message):
        evaluate(moe, folder, ["choose"], **change)


def test_a_line_cut_short_by_a_kill_is_asked_again(tmp_path: Path) -> None:
    class Request:
        def __init__(self, text: str) -> None:
            self.args = (text, {"until": ["."]})

    answers = Answers(tmp_path / "a.jsonl")
    for text in ("one", "two"):
        answers.add("generate_until", Request(text).args, text.upper())
        answers.commit()
    answers.close()
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'[["half a li')
    answers = Answers(tmp_path / "a.jsonl")
    wanted = [Request(text) for text in ("one", "two", "three", "one")]
    assert [r.args[0] for r in answers.missing("generate_until", wanted)] == ["three", "one"]
    assert answers.take("generate_until", wanted[:2]) == ["ONE", "TWO"]
    answers.add("generate_until", wanted[2].args, "THREE")
    answers.commit()
    answers.close()
    assert [len(line) > 10 for line in (tmp_path / "a.jsonl").read_bytes().splitlines()] == [True] * 3


def test_repeated_samples_differ_and_do_not_touch_the_global_generator(
    moe: nn.Module, task_files: Callable, evaluate: Callable, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate(moe, task_files(), ["sampled"])
    assert torch.equal(torch.rand(3), expected)
    found = list(SampleFile(tmp_path / "out" / "samples" / "sampled").read())
    assert all(len(row["responses"][0]) == 3 for row in found)
    assert any(len(set(row["responses"][0])) > 1 for row in found)
