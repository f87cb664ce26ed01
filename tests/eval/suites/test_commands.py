"""``libmoe eval --list`` and ``--check-mirror``: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libmoe.cli.suites import check_mirror, show_tasks
from libmoe.eval.suites import catalogue


def put(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "allenai/openbookqa/main/test.jsonl", {"id": "1"})
    put(
        tmp_path / "EleutherAI/lambada_openai/default/test.jsonl",
        {"text": "The ship that they had waited for at last came in, and the whole town ran to see the ship"},
    )
    put(tmp_path / "cam-cst/cbt/NE/test.jsonl", {"question": "Who ?"})
    return tmp_path


def test_the_list_tells_what_is_expected_and_what_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_tasks(["libmoe-lm"], folder, None, as_json=True)
    rows = {row["task"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 14
    assert rows["openbookqa"]["files"] == ["allenai/openbookqa/main/test.jsonl"]
    assert rows["openbookqa"]["there"] == [True]
    assert rows["piqa"]["there"] == [False]
    assert rows["cbt"]["there"] == [False, True, False, False]
    assert len(rows["mmlu"]["files"]) == 57


def test_the_whole_list(capsys: pytest.CaptureFixture[str]) -> None:
    show_tasks(None, None, None, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in rows] == [task.name for task in catalogue()]
    assert all(row["files"] or row["task"].startswith("moe-") for row in rows)


def test_the_check_names_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not check_mirror(folder, ["openbookqa", "lambada"], None, as_json=True)
    found = {item["task"]: item["problem"] for item in json.loads(capsys.readouterr().out)["checked"]}
    assert found["lambada"] is None
    assert found["openbookqa"] == "column 'question_stem' is missing; there are id"


def test_all_is_well(folder: Path) -> None:
    assert check_mirror(folder, ["lambada"], None, as_json=True)
