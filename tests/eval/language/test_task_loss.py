"""Task loss is the cost of the right answer alone, after the harness's own prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.harness import Settings, evaluate_tasks
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.language import task_loss

BITS = 8.0  # per byte, of a model that gives every byte the same probability


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("kind", ["sums", "choices"])
def test_bits_per_byte_do_not_depend_on_the_tokenizer_of_a_byte_uniform_model(
    request: pytest.FixtureRequest, words: Any, characters: Any, tmp_path: Path, kind: str, shots: int
) -> None:
    task, settings = request.getfixturevalue(kind), Settings(shots=shots)
    one = task_loss(words, kind, task, tmp_path / "words", settings)
    two = task_loss(characters, kind, task, tmp_path / "characters", settings)
    for item, other in zip(one.items, two.items, strict=True):
        assert item.bits_per_byte == pytest.approx(BITS) and other.bits_per_byte == pytest.approx(BITS)
        assert item.bytes == other.bytes == other.tokens and item.tokens < other.tokens
    assert one.bits_per_byte.value == pytest.approx(two.bits_per_byte.value) == BITS
    assert one.bits_per_token.value > two.bits_per_token.value == pytest.approx(BITS)
    assert one.shots == two.shots == shots


def test_prompt_tokens_contribute_nothing(sums: Any, words: Any, tmp_path: Path) -> None:
    bare, long = (task_loss(words, "sums", sums, tmp_path / str(n), Settings(shots=n)) for n in (0, 4))
    assert [item.nats for item in bare.items] == [item.nats for item in long.items]
    assert [item.tokens for item in bare.items] == [item.tokens for item in long.items] == [4] * 6
    assert bare.items[0].bytes == len(" twice 0 is 0")


def test_a_models_loss_is_its_cross_entropy_on_the_answer(
    sums: Any, dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    found = task_loss(Scorer(dense, tokenizer, 4), "sums", sums, tmp_path, Settings())
    for item in found.items:
        i = item.doc_id
        prompt, answer = f"Question: {i} plus {i}\nAnswer:", f" twice {i} is {2 * i}"
        ids, start = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
        logits = dense(torch.tensor([ids])).logits[0, start - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum").item()
        assert item.tokens == len(ids) - start and item.nats == pytest.approx(nats, rel=1e-4)
        assert item.bits_per_token == pytest.approx(nats / math.log(2) / item.tokens, rel=1e-4)
        assert item.bits_per_byte == pytest.approx(nats / math.log(2) / len(answer), rel=1e-4)


def test_of_choices_the_right_one_is_scored_as_the_harness_scores_it(
    choices: Any, moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    scorer = Scorer(moe, tokenizer, 4)
    found = task_loss(scorer, "choices", choices, tmp_path, Settings(shots=2))
    evaluate_tasks(scorer, {"choices": choices}, tmp_path, Settings(shots=2))
    theirs = [row["responses"][1][0][0] for row in SampleFile(tmp_path / "samples" / "choices").read()]
    assert [-item.nats for item in found.items] == pytest.approx(theirs, rel=1e-5)


def test_several_inputs_with_one_continuation_are_scored_after_the_right_one(
    make_task: Callable[..., Any], words: Any, tmp_path: Path
) -> None:
    task = make_task(
        "blank",
        [{"options": ["the long first", "it"], "rest": "was big.", "right": i % 2} for i in range(2)],
        output_type="multiple_choice",
        doc_to_text="{{right}}",
        doc_to_choice="{{options}}",
        doc_to_target="rest",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    task_loss(words, "blank", task, tmp_path, Settings())
    rows = SampleFile(tmp_path / "samples" / "blank.loss").read(["arguments"])
    assert [row["arguments"][0] for row in rows] == [["the long first", " was big."], ["it", " was big."]]


def test_a_prefix_of_the_answer_belongs_to_the_prompt(
    make_task: Callable[..., Any], words: Any, tmp_path: Path
) -> None:
    task = make_task(
        "prefixed",
        [{"q": "one", "a": ["first", "second"]}],
        output_type="generate_until",
        doc_to_text="Q: {{q}}",
        doc_to_target="a",
        gen_prefix="So:",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task_loss(words, "prefixed", task, tmp_path, Settings())
    (row,) = SampleFile(tmp_path / "samples" / "prefixed.loss").read(["arguments"])
    assert row["arguments"][0] == ["Q: one So:", " first"]  # of several right answers the first


def test_the_last_words_of_a_text_and_white_space_before_them(
    make_task: Callable[..., Any], words: Any, tmp_path: Path
) -> None:
    task = make_task(
        "last",
        [{"text": "once upon a ", "word": "time"}, {"text": "", "word": "time"}],
        output_type="loglikelihood",
        doc_to_text="{{text}}",
        doc_to_target="{{word}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    found = task_loss(words, "last", task, tmp_path, Settings())
    assert [(item.tokens, item.bytes) for item in found.items] == [(1, 5), (1, 4)]


def test_interrupted_it_goes_on_and_gives_the_same(
    sums: Any, dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    settings = Settings(slice_size=4, batch_size=2, shots=1)
    whole = task_loss(Scorer(dense, tokenizer, 2), "sums", sums, tmp_path / "whole", settings)
    scorer, calls = Scorer(dense, tokenizer, 2), 0

    def stops(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    dense.register_forward_pre_hook(stops)
    with pytest.raises(KeyboardInterrupt):
        task_loss(scorer, "sums", sums, tmp_path / "broken", settings)
    again = task_loss(scorer, "sums", sums, tmp_path / "broken", settings)
    assert calls == 4 and again == whole  # three batches, of which one had to be computed again
    assert sums.config.num_fewshot in (None, 0) and len(sums.eval_docs) == 6  # the task is as it was


def test_clusters_broken_documents_and_limits(
    make_task: Callable[..., Any], characters: Any, tmp_path: Path
) -> None:
    task = make_task(
        "parts",
        [{"q": "x", "a": "yes" if i != 2 else "", "part": i // 2} for i in range(6)],
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    found = task_loss(characters, "parts", task, tmp_path, Settings(limit=5), cluster="part")
    assert found.broken == {2: "the target is empty"}
    assert found.bits_per_byte.items == 4 and found.bits_per_byte.clusters == 3
    with pytest.raises(ConfigError, match="holds results with limit=5, not None"):
        task_loss(characters, "parts", task, tmp_path, Settings(), cluster="part")


def test_where_the_target_is_a_program_the_solution_is_named(
    make_task: Callable[..., Any], characters: Any, tmp_path: Path
) -> None:
    task = make_task(
        "program",
        [{"prompt": "def f():\n", "test": "assert f()", "solution": "    return 1\n"}],
        output_type="generate_until",
        unsafe_code=True,
        doc_to_text="{{prompt}}",
        doc_to_target="{{test}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    with pytest.raises(DataError, match="test program; name the column of the solution"):
        task_loss(characters, "program", task, tmp_path, Settings())
    found = task_loss(characters, "program", task, tmp_path, Settings(), answer="solution")
    assert found.items[0].bytes == len("\n    return 1\n")


def test_what_cannot_be_scored_is_refused(
    choices: Any, make_task: Callable[..., Any], words: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="among its choices"):
        task_loss(words, "choices", choices, tmp_path, Settings(), answer="gold")
    words.max_length = 0
    with pytest.raises(
        DataError, match=r"no document of choices could be scored.*the answer has 1 tokens, not 1 to 0"
    ):
        task_loss(words, "choices", choices, tmp_path, Settings())
    text = make_task(
        "whole",
        [{"text": "once"}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    )
    with pytest.raises(DataError, match="measure its perplexity"):
        task_loss(words, "whole", text, tmp_path, Settings())
