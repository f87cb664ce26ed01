"""One task of every kind, from local files to a score, with no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.eval.harness import Evaluation
from libmoe.eval.harness.samples import SampleFile

Evaluate = Callable[..., Evaluation]

FORMATS = [
    ("arc_easy", "acc,none", 3, "choices from a template, numbered or lettered"),
    ("hellaswag", "acc_norm,none", 2, "rows prepared by a function"),
    ("winogrande", "acc,none", 2, "a prompt for each choice"),
    ("blimp_adjunct_island", "acc,none", 2, "minimal pairs"),
    ("boolq", "acc,none", 3, "constant choices"),
    ("race", "acc,none", 1, "functions for prompt, choices and target"),
    ("cbt_verbs", "acc,none", 1, "our own task file"),
    ("lambada_openai", "acc,none", 3, "likelihood of one word"),
    ("arithmetic_2da", "acc,none", 2, "a file of the hub that the task names"),
    ("wikitext", "bits_per_byte,none", 2, "likelihood of whole documents"),
    ("gsm8k_cot_zeroshot", "exact_match,flexible-extract", 2, "a number found in what is generated"),
    ("triviaqa", "exact_match,remove_whitespace", 2, "any of several answers"),
    ("drop", "f1,none", 2, "overlap of words"),
    ("squad_completion", "contains,none", 1, "a task written in Python"),
    ("wmt14-en-fr", "bleu,none", 2, "translation"),
]


@pytest.mark.parametrize(("name", "metric", "documents", "what"), FORMATS, ids=[name for name, *_ in FORMATS])
def test_it_runs_offline(
    name: str, metric: str, documents: int, what: str, data: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    found = evaluate(data, name)
    assert not found.failed
    score = found.tasks[name]
    assert not score.broken
    assert score.documents == documents
    value = score.metric(*metric.split(","))
    assert value is not None
    assert value.items == documents
    rows = list(SampleFile(tmp_path / "out" / "samples" / name).read())
    assert [row["doc_id"] for row in rows] == list(range(documents))


def test_a_group_has_the_scores_of_its_subjects_and_their_mean(data: Path, evaluate: Evaluate) -> None:
    found = evaluate(data, "mmlu_two")
    assert not found.failed
    anatomy, virology = (found.tasks[f"mmlu_{name}"].metric("acc") for name in ("anatomy", "virology"))
    assert anatomy is not None and virology is not None
    assert (anatomy.items, virology.items) == (2, 1)
    assert found.groups["mmlu_two"]["acc"] == pytest.approx((2 * anatomy.value + virology.value) / 3)


def test_examples_come_from_their_own_split(data: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    found = evaluate(data, "mmlu_anatomy", shots=2)
    assert not found.failed
    row = next(SampleFile(tmp_path / "out" / "samples" / "mmlu_anatomy").read())
    assert row["arguments"][0][0].count("An example about anatomy") == 1
    assert row["arguments"][0][0].count("Another example about anatomy") == 1


def test_passages_are_clusters(data: Path) -> None:
    from libmoe.eval.harness.loading import load_tasks
    from libmoe.eval.mirror import serving
    from libmoe.eval.suites import resolve

    task = resolve(["boolq"])[0]
    loaded, _, _ = load_tasks([task.task], data=serving(data))
    documents = loaded[task.task].eval_docs
    assert len({document[task.cluster] for document in documents}) == 2 < len(documents)


def test_the_right_candidate_completes_the_sentence(data: Path) -> None:
    from libmoe.eval.harness.loading import load_tasks
    from libmoe.eval.mirror import serving

    loaded, _, _ = load_tasks(["cbt"], data=serving(data))
    task = loaded["cbt_common_nouns"]
    document = task.eval_docs[0]
    choices = task.doc_to_choice(document)
    assert len(choices) == 10
    assert (
        choices[task.doc_to_target(document)]
        == "`` I will go , '' she said , and the little bell rang in the dark ."
    )
    assert task.doc_to_text(document).startswith("The mice of the bakery")


def test_code_runs_only_when_allowed(data: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert "--unsafe-code" in evaluate(data, "humaneval").failed["humaneval"]
    score = evaluate(data, "humaneval", unsafe_code=True).tasks["humaneval"].metric("pass@1", "create_test")
    assert score is not None
    assert score.value == 0.0  # a model with random weights writes no program


def test_right_code_passes(data: Path) -> None:
    from libmoe.eval.harness.loading import load_tasks
    from libmoe.eval.mirror import serving

    loaded, _, _ = load_tasks(["humaneval"], data=serving(data))
    task: Any = loaded["humaneval"]
    document = task.eval_docs[0]
    programs = [document["prompt"] + document["canonical_solution"], document["prompt"] + "    return x\n"]
    assert task.process_results(document, [programs[:1]]) == {"pass@1": 1.0}
    assert task.process_results(document, [programs[1:]]) == {"pass@1": 0.0}
