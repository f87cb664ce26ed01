"""A run comes out again, and what keeps it from doing so is named."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid, provenance, run_grid
from libmoe.bench.reproduce import differences, reproduce
from libmoe.cli import reproduce as command
from libmoe.core.errors import ConfigError, DataError

Mini = Callable[..., Grid]


def say_nothing(line: str) -> None: ...


class Finished:
    folder: Path | None = None


@pytest.fixture
def grid_folder(mini: Mini, misfits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid, shared by the tests of this file."""
    if Finished.folder is None:
        folder = tmp_path_factory.mktemp("grids") / "mini"
        run_grid(mini("dense", "slow"), folder, plugins=[misfits], say=say_nothing, live=False)
        Finished.folder = folder
    return Finished.folder


@pytest.fixture
def cell(grid_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grid_folder / "slow-s0", tmp_path / "slow-s0"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_cell_comes_out_again_digit_by_digit(cell: Path, tmp_path: Path) -> None:
    found = reproduce(cell, tmp_path / "again", say=say_nothing, live=False)
    assert found.verdict == "bitwise" and found.whole and found.same_weights is True
    assert found.environment == []
    names = [quantity.name for quantity in found.quantities]
    assert {"loss", "validation", "held-out bits_per_byte", "held-out domains", "task moe_cloze"} <= set(
        names
    )
    assert found.quantities[0].numbers == 6
    assert json.loads((tmp_path / "again" / "reproduction.json").read_text())["verdict"] == "bitwise"


def test_a_number_that_does_not_come_out_is_found_and_ends_in_exit_code_1(
    cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(cell / "eval.json", lambda e: e["domains"].update(math=e["domains"]["math"] * 1.01))
    with pytest.raises(BaseException) as ended:
        command.run(cell, None, steps=None, tolerance=None, plugins=[], quiet=True, as_json=True)
    assert getattr(ended.value, "exit_code", None) == 1
    found = json.loads(capsys.readouterr().out)
    verdicts = {quantity["name"]: quantity["verdict"] for quantity in found["quantities"]}
    assert verdicts.pop("held-out domains") == "differs" and set(verdicts.values()) == {"bitwise"}
    (wrong,) = [quantity for quantity in found["quantities"] if quantity["verdict"] == "differs"]
    assert wrong["where"] == "domains math" and wrong["largest"] == pytest.approx(0.0099, rel=0.01)


def test_the_first_steps_alone_end_early_and_say_whether_they_are_within_tolerance(cell: Path) -> None:
    lines = (cell / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[1]["loss"] *= 1 + 1e-5
    records[4]["loss"] *= 2  # not looked at
    (cell / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (cell / "model" / "model.safetensors").unlink()
    found = reproduce(cell, steps=3, say=say_nothing, live=False)
    assert (found.verdict, found.steps, found.whole, found.same_weights) == (
        "within tolerance",
        3,
        False,
        None,
    )
    (loss, *rest) = found.quantities
    assert loss.where == "step 2" and loss.largest == pytest.approx(1e-5, rel=0.01)
    assert {quantity.name for quantity in rest} <= {"auxiliary losses", "validation"}
    again = reproduce(cell, steps=3, tolerance=1e-7, say=say_nothing, live=False)
    assert again.verdict == "differs"


def test_what_differs_in_the_environment_is_named(grid_folder: Path) -> None:
    then = provenance.read(grid_folder / "slow-s0")
    assert then is not None
    now = json.loads(json.dumps(then))
    then["packages"]["torch"] = "1.0"
    then["packages"]["long-gone"] = "3"
    now["hardware"]["cpu"] = "another"
    now["torch"]["threads"] = 7
    now["environment"]["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    lines = differences(then, now)
    assert [line.partition(" was ")[0] for line in lines] == [
        "hardware.cpu",
        "torch.threads",
        "environment.CUBLAS_WORKSPACE_CONFIG",
        "torch",
        "long-gone",
    ]
    assert lines[2].endswith("was not set, now :4096:8") and lines[4].endswith("now not installed")


def test_every_cell_and_the_grid_say_where_they_come_from(grid_folder: Path, misfits: Path) -> None:
    of_grid, of_cell = provenance.read(grid_folder), provenance.read(grid_folder / "slow-s0")
    assert of_grid is not None and of_cell is not None
    for facts in (of_grid, of_cell):
        assert facts["command"] and len(facts["recipe"]) == 64 and facts["packages"]["torch"]
        assert list(facts["plugins"]) == [str(misfits)] and len(facts["plugins"][str(misfits)]) == 64
        assert facts["hardware"]["cpu"] and facts["hardware"]["memory_bytes"] > 0
        assert len(facts["data"]["embedded"]) == 64
    assert of_cell["torch"]["threads"] >= 1 and of_cell["environment"]["OMP_NUM_THREADS"]
    assert "lm_eval" in of_cell["packages"]  # what evaluation imported, too


def test_git_is_noted_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = provenance.git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "file").write_text("2")
    dirty = provenance.git_state(tmp_path)
    assert dirty is not None and dirty["dirty"] and dirty["commit"] == clean["commit"]
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) is None


def test_a_run_that_goes_on_elsewhere_keeps_where_it_has_been(tmp_path: Path) -> None:
    facts = provenance.gather(command="libmoe bench", recipe={})
    provenance.record(tmp_path, facts)
    provenance.record(tmp_path, facts)
    assert provenance.read(tmp_path)["before"] == []  # type: ignore[index]
    provenance.record(tmp_path, facts | {"hardware": facts["hardware"] | {"cpu": "another"}})
    (before,) = provenance.read(tmp_path)["before"]  # type: ignore[index]
    assert before["hardware"] == facts["hardware"] and "git" not in before


def test_only_variables_that_matter_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    environment = provenance.gather(command="", recipe={})["environment"]
    assert environment["MKL_CBWR"] == "COMPATIBLE" and "WANDB_API_KEY" not in environment


def test_what_cannot_be_reproduced_is_one_line(grid_folder: Path, cell: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds a comparison; name one of its runs, for example .*dense-s0"
    ):
        reproduce(grid_folder)
    with pytest.raises(ConfigError, match=r"recipe\.yaml is missing"):
        reproduce(tmp_path)
    with pytest.raises(ConfigError, match="exists; choose a new folder"):
        reproduce(cell, tmp_path)
    edit(cell / "provenance.json", lambda facts: facts.update(plugins={"/gone/plugin.py": "0"}))
    with pytest.raises(
        ConfigError, match=r"plugin /gone/plugin\.py .* is gone; say where it is now with --plugin"
    ):
        reproduce(cell)
    (cell / "metrics.jsonl").unlink()
    edit(cell / "provenance.json", lambda facts: facts.update(plugins={}))
    with pytest.raises(DataError, match="has logged no loss"):
        reproduce(cell)
