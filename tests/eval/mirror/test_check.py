"""A mirror that lacks something: what is wrong is named in a line, and everything else goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.core.errors import ConfigError
from libmoe.eval.harness import Evaluation
from libmoe.eval.mirror.check import Checked, check
from libmoe.eval.suites import resolve

Evaluate = Callable[..., Evaluation]
ARC = "allenai/ai2_arc/ARC-Easy/test.jsonl"
HELLASWAG = "Rowan/hellaswag/validation.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def checked(folder: Path, *names: str) -> dict[str, Checked]:
    return {item.leaf: item for item in check(folder, resolve(names))}


def test_a_whole_mirror_has_no_problem(data: Path) -> None:
    names = "arc-easy hellaswag winogrande lambada wikitext gsm8k triviaqa drop race boolq addition wmt14-en-fr".split()
    found = checked(data, *names, "cbt", "squad-completion", "humaneval", "moe-cloze")
    assert {name: item.problem for name, item in found.items() if item.problem} == {}
    assert found["arc_easy"] == Checked("arc-easy", "arc_easy", ARC, True, 3, None)
    assert found["moe_cloze"].file == "(its own)"
    assert len([name for name in found if name.startswith("cbt_")]) == 4


def test_a_missing_column(mirror: Path, evaluate: Evaluate) -> None:
    rewrite(
        mirror / ARC, [{k: v for k, v in row.items() if k != "answerKey"} for row in rows_of(mirror / ARC)]
    )
    assert checked(mirror, "arc-easy")["arc_easy"].problem == (
        "column 'answerKey' is missing; there are id, question, choices"
    )
    found = evaluate(mirror, "arc_easy", "winogrande")
    assert "answerKey" in found.failed["arc_easy"]
    assert list(found.tasks) == ["winogrande"]


def test_a_missing_column_of_a_function(mirror: Path) -> None:
    rewrite(
        mirror / HELLASWAG,
        [{k: v for k, v in row.items() if k != "ctx_b"} for row in rows_of(mirror / HELLASWAG)],
    )
    assert "column 'ctx_b' is missing" in str(checked(mirror, "hellaswag")["hellaswag"].problem)


def test_a_missing_file(mirror: Path, evaluate: Evaluate) -> None:
    (mirror / "openai/gsm8k/main/test.jsonl").unlink()
    (mirror / ARC).unlink()  # its training split stays
    found = evaluate(mirror, "gsm8k_cot_zeroshot", "arc_easy", "winogrande")
    assert f"expected {mirror}/openai/gsm8k/main/" in found.failed["gsm8k_cot_zeroshot"]
    assert found.failed["arc_easy"].endswith(f"has no file of split 'test'; expected {mirror / ARC}")
    assert list(found.tasks) == ["winogrande"]
    item = checked(mirror, "gsm8k")["gsm8k_cot_zeroshot"]
    assert not item.there
    assert item.problem == f"no file; expected {mirror / 'openai/gsm8k/main/test.jsonl'}"


def test_a_missing_part_of_a_group(mirror: Path) -> None:
    (mirror / "cam-cst/cbt/NE/test.jsonl").unlink()
    found = checked(mirror, "cbt")
    assert [name for name, item in found.items() if item.problem] == ["cbt_named_entities"]


def test_a_file_that_does_not_parse(mirror: Path, evaluate: Evaluate) -> None:
    with open(mirror / ARC, "a", encoding="utf-8") as file:
        file.write('{"id": "made-9", "question": "cut sho\n')
    problem = checked(mirror, "arc-easy")["arc_easy"].problem
    assert problem == f"{mirror / ARC} cannot be read: line 4 is not JSON"
    found = evaluate(mirror, "arc_easy", "winogrande")
    assert found.failed["arc_easy"] == problem
    assert list(found.tasks) == ["winogrande"]


def test_a_broken_row_is_left_out_and_named(mirror: Path, evaluate: Evaluate) -> None:
    rows = rows_of(mirror / ARC)
    rows[1]["answerKey"] = "9"
    rewrite(mirror / ARC, rows)
    assert str(checked(mirror, "arc-easy")["arc_easy"].problem).startswith("row 1: ")
    score = evaluate(mirror, "arc_easy").tasks["arc_easy"]
    assert list(score.broken) == [1]
    assert score.documents == 2


def test_a_row_that_a_function_cannot_prepare_is_named(mirror: Path, evaluate: Evaluate) -> None:
    rows = rows_of(mirror / HELLASWAG)
    rewrite(mirror / HELLASWAG, [*rows, rows[0] | {"endings": None}])
    assert str(checked(mirror, "hellaswag")["hellaswag"].problem).startswith("row 2: ")
    found = evaluate(mirror, "hellaswag", "winogrande")
    assert "winogrande" in found.tasks


def test_examples_that_are_not_there(mirror: Path, evaluate: Evaluate) -> None:
    (mirror / "allenai/ai2_arc/ARC-Easy/train.jsonl").unlink()
    assert not evaluate(mirror, "arc_easy").failed
    assert not checked(mirror, "arc-easy")["arc_easy"].problem


def test_examples_that_are_wanted_but_not_there(mirror: Path, evaluate: Evaluate) -> None:
    (mirror / "allenai/ai2_arc/ARC-Easy/train.jsonl").unlink()
    found = evaluate(mirror, "arc_easy", "mmlu_anatomy", shots=1)
    assert "arc_easy" in found.failed or not found.tasks["arc_easy"].metrics
    assert found.tasks["mmlu_anatomy"].metrics


def test_an_empty_file(mirror: Path) -> None:
    (mirror / ARC).write_text("", encoding="utf-8")
    assert checked(mirror, "arc-easy")["arc_easy"].problem == f"{mirror / ARC} cannot be read: it has no rows"


def test_a_broken_first_row_is_named(mirror: Path) -> None:
    rows = rows_of(mirror / ARC)
    rewrite(mirror / ARC, [rows[0] | {"choices": None}, *rows[1:]])
    assert checked(mirror, "arc-easy")["arc_easy"].problem == "row 0: column 'choices' is empty"


def test_columns_of_vision_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "lmms-lab-encoder/MME"
    folder.mkdir(parents=True)
    rewrite(
        folder / "test.jsonl",
        [{"question_id": "a/1.png", "question": "?", "answer": "Yes", "category": "color"}],
    )
    assert checked(tmp_path, "mme")["mme"].problem == (
        "column 'image' is missing; there are question_id, question, answer, category"
    )


def test_an_unknown_task_is_told_with_the_nearest(data: Path, evaluate: Evaluate) -> None:
    with pytest.raises(ConfigError, match="unknown task 'winogrand'; did you mean 'winogrande'"):
        evaluate(data, "arc_easy", "winogrand")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        next(check(tmp_path / "nowhere", resolve(["piqa"])))
