"""A run comes out again, and what keeps it from doing so is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from libmoe.bench import Grid, run_grid
from libmoe.bench.provenance import ran_on
from libmoe.bench.reproduce import reproduce
from libmoe.bench.side_by_side import differences, not_compared, same_weights
from libmoe.cli import reproduce as command
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import digest
from libmoe.train import provenance

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
    assert found.environment == [] and found.not_compared == []
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
    with pytest.raises(typer.Exit) as ended:
        command.run(cell, None, steps=None, tolerance=None, plugins=[], quiet=True, as_json=True)
    assert ended.value.exit_code == 1
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
    assert (found.verdict, found.steps, found.whole) == ("within tolerance", 3, False)
    assert found.same_weights is None
    assert found.not_compared == ["held-out scores and final weights: the run was repeated to step 3 only"]
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


def test_a_plugin_is_the_same_by_its_content_wherever_it_lies(grid_folder: Path) -> None:
    then = provenance.read(grid_folder / "slow-s0")
    assert then is not None
    moved = then | {"plugins": [plugin | {"path": "/elsewhere/misfits.py"} for plugin in then["plugins"]]}
    assert differences(then, moved) == []
    changed = then | {"plugins": [plugin | {"sha256": "f" * 64} for plugin in then["plugins"]]}
    assert differences(then, changed)[0].startswith("plugins.misfits.py was ")


def test_weights_that_one_run_lacks_are_not_compared_and_this_is_said(tmp_path: Path, cell: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert same_weights(one, other) is None  # nothing is equal to nothing
    for folder, content in ((one, b"a"), (other, b"a")):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(content)
    assert same_weights(one, other) is True
    (other / "model" / "model.safetensors").write_bytes(b"b")
    assert same_weights(one, other) is False
    (other / "model" / "model.safetensors").unlink()
    assert same_weights(one, other) is None
    assert not_compared(other, 6, True, None) == [
        f"held-out scores: {other} has no eval.json that can be read",
        f"final weights: {other} has none (model/*.safetensors)",
    ]
    assert not_compared(cell, 6, True, True) == []


def test_machines_of_the_cells_are_told_as_they_were_where_the_cells_ran(
    grid_folder: Path, tmp_path: Path
) -> None:
    facts = provenance.read(grid_folder / "slow-s0")
    assert facts is not None
    machine = {"cpu": "Xeon", "cores": 8, "system": "Linux 6.1 x86_64", "gpus": [{"name": "H200"}] * 2}
    for i, host in enumerate(("a", "b", "c")):
        gpus = [] if host == "c" else machine["gpus"]
        hardware = facts["hardware"] | machine | {"host": host, "gpus": gpus}
        provenance.record(tmp_path / str(i), facts | {"hardware": hardware})
    cells = [tmp_path / str(i) for i in range(3)]
    assert ran_on(cells[:2]) == "Xeon, 8 cores, 2 x H200, Linux"
    assert ran_on([*cells, tmp_path / "not begun"]) == (
        "2 cells on Xeon, 8 cores, 2 x H200, Linux; 1 cell on Xeon, 8 cores, Linux"
    )
    assert ran_on([]) == ""


def test_every_cell_and_the_grid_say_where_they_come_from(grid_folder: Path, misfits: Path) -> None:
    of_grid, of_cell = provenance.read(grid_folder), provenance.read(grid_folder / "slow-s0")
    assert of_grid is not None and of_cell is not None
    for facts in (of_grid, of_cell):
        assert facts["command"] and len(facts["recipe"]) == 64 and facts["packages"]["torch"]
        assert {"name": misfits.name, "sha256": digest(misfits), "path": str(misfits)} in facts["plugins"]
        assert facts["hardware"]["cpu"] and facts["hardware"]["memory_bytes"] > 0
        assert len(facts["data"]["embedded"]) == 64
    assert of_cell["torch"]["threads"] >= 1 and of_cell["environment"]["OMP_NUM_THREADS"]
    assert "lm_eval" in of_cell["packages"]  # what evaluation imported, too


def test_what_cannot_be_reproduced_is_one_line(grid_folder: Path, cell: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds a comparison; name one of its runs, for example .*dense-s0"
    ):
        reproduce(grid_folder)
    with pytest.raises(ConfigError, match=r"recipe\.yaml is missing"):
        reproduce(tmp_path)
    with pytest.raises(ConfigError, match="exists; choose a new folder"):
        reproduce(cell, tmp_path)
    gone = {"name": "plugin.py", "sha256": "0", "path": "/gone/plugin.py"}
    edit(cell / "provenance.json", lambda facts: facts.update(plugins=[gone]))
    with pytest.raises(
        ConfigError, match=r"plugin /gone/plugin\.py .* is gone; say where it is now with --plugin"
    ):
        reproduce(cell)
    (cell / "metrics.jsonl").unlink()
    edit(cell / "provenance.json", lambda facts: facts.update(plugins=[]))
    with pytest.raises(DataError, match="has logged no loss"):
        reproduce(cell)
