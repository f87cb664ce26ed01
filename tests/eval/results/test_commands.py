"""What ``libmoe results`` and ``libmoe compare`` print and write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.cli import results as command
from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.results import RESULTS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIBMOE_RESULTS", raising=False)
    monkeypatch.setattr(command.console, "width", 200)


def test_the_help_names_every_column() -> None:
    assert list(RESULTS) == command.COLUMNS


def test_results_are_added_printed_and_exported(
    real: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(add=list(real.values()))
    printed = capsys.readouterr().out
    assert "moe_domain" in printed and "acc" in printed
    command.run("task = 'moe_domain' and metric = 'acc'", "model,value", "value desc", 1, as_json=True)
    assert [list(row) for row in json.loads(capsys.readouterr().out)] == [["model", "value"]]
    command.run(csv=Path("out/rows.txt"), parquet=Path("out/rows.bin"))
    assert Path("out/rows.txt").read_text().startswith("task,metric,filter,value")
    assert Path("out/rows.bin").read_bytes().startswith(b"PAR1")


def test_columns_are_explained_without_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    command.run(explain=True)
    assert "clustered standard error" in capsys.readouterr().out


def test_nothing_to_add_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no evaluation\.json"):
        command.run(add=[tmp_path])
    with pytest.raises(ConfigError, match="only a condition"):
        Path("runs").mkdir()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "evaluation.json").write_text('{"tasks": {}}')
        command.run("1); drop table scores; --", add=[tmp_path])


def test_a_comparison_is_printed_and_written(
    real: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run_compare(list(real.values()))
    printed = capsys.readouterr()
    for word in ("task", "dense", "moe", "95 % interval", "found from", "all tasks", "moe_cloze"):
        assert word in printed.out
    folder = tmp_path / "runs" / "compare-dense-moe"
    written = json.loads((folder / "comparison.json").read_text())
    assert [model["label"] for model in written["models"]] == ["dense", "moe"] and len(written["tasks"]) == 5
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_one_task_of_three_models_as_json(
    plant: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [plant(name, {"x": [0, 1, 1, 0] * 10, "y": [1, 1, 1, 0] * 10}) for name in "abc"]
    command.run_compare(folders, ["x"], out=Path("mine"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["model"]) for row in found["tasks"]] == [("x", "b"), ("x", "c")]
    assert Path("mine/comparison.json").is_file()
