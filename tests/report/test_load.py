"""A damaged grid folder is refused with one line, or read with a note."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.core.errors import DataError
from libmoe.report import summarise, write_report
from libmoe.report.load import read_grid

Spoil = Callable[..., Path]


def test_missing_results_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no results\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "rows"),
        ('{"rows": []}', "rows"),
        ('{"rows": [7]}', r"rows\[0\]"),
        ('{"rows": [{"seed": 0}]}', r"rows\[0\]\.method"),
        ('{"rows": [{"method": "a", "seed": "0"}]}', r"rows\[0\]\.seed of 'a'"),
        ('{"rows": [{"method": "a", "seed": 0, "status": "okay"}]}', "choose 'ok' or 'failed'"),
        ('{"rows": [{"method": "a", "seed": 0, "kind": "sparse"}]}', "choose 'moe' or 'dense'"),
        (
            '{"rows": [{"method": "a", "seed": 0, "bits_per_byte": "2"}]}',
            "bits_per_byte of 'a' must be a number",
        ),
        ('{"rows": [{"method": "a", "seed": 0}, {"method": "a", "seed": 0}]}', "has seed 0 twice"),
        ('{"rows": [{"method": "a", "seed": 0, "tasks": []}]}', "tasks of 'a' must be an object"),
    ],
)
def test_malformed_results_are_refused_with_the_field_named(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=named) as caught:
        read_grid(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_finite_score_counts_as_failed(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        results["rows"][0]["bits_per_byte"] = float("nan")
        results["rows"][2] = {"method": "topk", "seed": 9, "status": "failed", "error": "out of memory"}

    failed = {(run["method"], run["seed"]): run["error"] for run in summarise(spoiled(change))["failed"]}
    assert failed["topk", 9] == "out of memory"
    assert "finite" in failed["dense-active", 0]


def test_damaged_files_of_a_run_leave_a_note_each(spoiled: Spoil) -> None:
    folder = spoiled()
    (folder / "topk-s0" / "metrics.jsonl").open("a", encoding="utf-8").write('{"step": 2')
    (folder / "topk-s1" / "metrics.jsonl").unlink()
    (folder / "hash-s0" / "eval.json").write_text("{", encoding="utf-8")
    (folder / "hash-s1" / "eval.json").write_text("[]", encoding="utf-8")
    (folder / "remoe-s0" / "eval.json").unlink()
    notes = "\n".join(summarise(folder)["notes"])
    assert "topk-s0/metrics.jsonl: 1 damaged line(s) left out" in notes
    assert "topk-s1/metrics.jsonl is missing" in notes
    assert "hash-s0/eval.json is not valid JSON" in notes
    assert "hash-s1/eval.json is not an object" in notes
    assert "remoe-s0/eval.json is missing" in notes


def test_a_name_cannot_lead_out_of_the_grid_folder(tmp_path: Path) -> None:
    (tmp_path / "outside-s0").mkdir()
    (tmp_path / "outside-s0" / "eval.json").write_text('{"curve": [{"tokens": 1, "bits_per_byte": 1}]}')
    grid = tmp_path / "grid"
    grid.mkdir()
    row = {"method": "../outside", "seed": 0, "bits_per_byte": 2.0}
    (grid / "results.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    read = read_grid(grid)
    assert read.runs["../outside", 0].evaluation == {}
    assert "cannot be a folder's name" in read.notes[0]
