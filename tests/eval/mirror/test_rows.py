"""JSON files: every value as it is written, whatever the others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libmoe.core.errors import DataError
from libmoe.eval.mirror.rows import BATCH, read_json


def write(path: Path, rows: list[Any]) -> list[Path]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [path]


@pytest.mark.parametrize(
    "values",
    [
        ["2014-01-01", "2015-12-31"],
        ["12:30", "12:45"],
        ["1", "2"],
        ["", None],
        [1, 2.5],
        [True, None],
        [["a"], []],
        [{"text": ["a"], "start": [1]}, {"text": [], "start": []}],
        [1, "x"],
        [[1, "a"], None],
    ],
)
def test_values_stay_as_they_are(values: list[Any], tmp_path: Path) -> None:
    data = read_json(write(tmp_path / "a.jsonl", [{"v": v, "n": i} for i, v in enumerate(values)]))
    assert [row["v"] for row in data] == values


def test_a_type_that_shows_late(tmp_path: Path) -> None:
    rows = [{"v": None, "w": 1} for _ in range(BATCH)] + [{"v": "late", "w": 0.5, "x": "new"}]
    data = read_json(write(tmp_path / "a.jsonl", rows))
    assert len(data) == BATCH + 1
    assert data[BATCH] == {"v": "late", "w": 0.5, "x": "new"}
    assert data[0] == {"v": None, "w": 1.0, "x": None}


def test_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"v": "x"}, {"v": "y"}], indent=1), encoding="utf-8")
    assert read_json([tmp_path / "a.json"])["v"][:] == ["x", "y"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert read_json(write(tmp_path / "a.jsonl", [{"v": "x"}]))["v"][:] == ["x"]
    assert read_json(write(tmp_path / "a.jsonl", [{"v": "y"}]))["v"][:] == ["y"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ('{"a": 1}\n\n[1]\n', "line 3 is no object"),
        ("[1, 2]", "item 0 is no object"),
        ('[{"a": 1}', "it is not JSON"),
        ("\n\n", "it has no rows"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        read_json([tmp_path / "a.json"])
