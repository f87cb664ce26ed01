"""Grids survive what happens to them: failing cells, killed workers, a killed command, another grid."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid, run_grid
from libmoe.bench.cell import ROW_KEYS
from libmoe.cli import main
from libmoe.core.errors import ConfigError, DataError, LibMoEError
from libmoe.core.files import hold
from libmoe.core.plugins import load_plugin
from libmoe.eval.results import Results, compare

Mini = Callable[..., Grid]
WALL_CLOCK = ("tokens_per_second", "peak_memory_bytes", "train_seconds")
NUMBERS = (
    "active_params", "total_params", "flops_per_token", "steps", "train_flops", "tokens", "tokens_per_second",
    "peak_memory_bytes", "train_seconds", "bits_per_byte", "best_bits_per_byte",
)  # fmt: skip
METHODS_OF_ALL_KINDS = ("dense", "smoe", "raises", "fragile", "doomed")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())["rows"]


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows]


def times(folder: Path) -> dict[Path, int]:
    names = ("metrics.jsonl", "model.safetensors", "eval.json", "row.json")
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name in names}


def say_nothing(line: str) -> None: ...


class Finished:
    """A grid with every kind of cell, run once for all tests of this file."""

    folder: Path | None = None
    store: Path
    said: list[str]


@pytest.fixture
def finished(mini: Mini, misfits: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    if Finished.folder is None:
        folder, said = tmp_path_factory.mktemp("grids") / "mini", []
        store = folder.parent / "results.db"
        grid = mini(*METHODS_OF_ALL_KINDS)
        run_grid(grid, folder, plugins=[misfits], store=store, say=said.append, live=False)
        Finished.folder, Finished.store, Finished.said = folder, store, said
    return Finished()


@pytest.fixture
def done(finished: Finished, tmp_path: Path) -> Path:
    """A finished grid of one's own: dense and smoe, without the cells that fail."""
    assert finished.folder is not None
    folder = tmp_path / "done"
    shutil.copytree(
        finished.folder, folder, ignore=shutil.ignore_patterns("raises*", "fragile*", "doomed*", "worker*")
    )
    results = json.loads((folder / "results.json").read_text())
    results["rows"] = results["rows"][:2]
    (folder / "results.json").write_text(json.dumps(results))
    mark = json.loads((folder / "grid.json").read_text())
    mark["entries"] = {key: mark["entries"][key] for key in ("dense", "smoe")}
    (folder / "grid.json").write_text(json.dumps(mark))
    return folder


# -- one run --------------------------------------------------------------------------------------------------------
def test_rows_have_all_keys_finite_values_and_the_order_of_the_grid(finished: Finished) -> None:
    assert finished.folder is not None
    rows = rows_of(finished.folder)
    assert [row["method"] for row in rows] == list(METHODS_OF_ALL_KINDS)
    for row in rows:
        assert tuple(row) == ROW_KEYS
        assert row["kind"] == ("dense" if row["method"] == "dense" else "moe")
        assert row["seed"] == 0 and row["causal"] is True
    json.dumps(rows, allow_nan=False)
    for row in rows[:2]:
        assert row["status"] == "ok" and row["error"] is None
        for key in NUMBERS:
            assert math.isfinite(row[key]) and row[key] > 0, key
        assert set(row["domains"]) == {"novel", "math"} and row["tasks"]["moe_cloze"]["n"] == 4
        assert row["tokens"] == 6 * 2 * 32 and row["steps"] == 6 and row["tuning"] is None
    assert rows[0]["active_params"] == pytest.approx(rows[1]["active_params"], rel=0.01)
    assert rows[1]["paper"] == 23


def test_the_protocol_says_how_the_comparison_was_made(finished: Finished) -> None:
    assert finished.folder is not None
    protocol = json.loads((finished.folder / "results.json").read_text())["protocol"]
    assert protocol["budget"] == "active_params equal to dense" and protocol["seeds"] == [0]
    assert protocol["domains"] == ["novel", "math"] and protocol["unigram_bits_per_byte"] > 0
    assert abs(protocol["mismatch"]["smoe"]) < 0.01 and protocol["mismatch"]["dense"] is None


def test_a_cell_that_fails_is_listed_and_the_others_go_on(finished: Finished) -> None:
    assert finished.folder is not None
    rows = {row["method"]: row for row in rows_of(finished.folder)}
    assert rows["raises"]["status"] == "failed" and rows["raises"]["bits_per_byte"] is None
    error = rows["raises"]["error"]
    assert "misfits.py:" in error and "ValueError: this router does not work" in error and "\n" not in error
    details = finished.folder / "raises-s0" / "error.txt"
    assert str(details) in error and "Traceback" in details.read_text()
    assert sum("raises seed 0: failed: misfits.py:" in line for line in finished.said) == 1
    assert {rows[name]["status"] for name in ("dense", "smoe", "fragile")} == {"ok"}


def test_a_killed_worker_goes_on_from_its_checkpoint_once(finished: Finished) -> None:
    assert finished.folder is not None
    rows = {row["method"]: row for row in rows_of(finished.folder)}
    metrics = (finished.folder / "fragile-s0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    # The router is smoe's as long as it lives, and the kill left no trace in the numbers.
    assert rows["fragile"]["bits_per_byte"] == rows["smoe"]["bits_per_byte"]
    assert rows["doomed"]["status"] == "failed"
    assert "was killed (SIGKILL), twice" in rows["doomed"]["error"]


def test_failures_are_in_the_report_and_in_the_exit_code(
    finished: Finished, grid_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.folder is not None
    monkeypatch.setattr("libmoe.bench.run_grid", lambda *arguments, **options: [])
    monkeypatch.setattr(
        sys, "argv", ["libmoe", "bench", str(grid_file("dense")), "--out", str(finished.folder)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    page = (finished.folder / "report.html").read_text()
    assert "this router does not work" in page and "SIGKILL" in page


def test_workers_keep_to_their_logs(finished: Finished) -> None:
    assert finished.folder is not None
    logs = "".join(file.read_text() for file in finished.folder.glob("worker-*.log"))
    assert "--- dense seed 0" in logs and "--- doomed seed 0" in logs


# -- again ----------------------------------------------------------------------------------------------------------
def test_finished_cells_are_kept_as_they_are(done: Path, mini: Mini) -> None:
    before, rows, said = times(done), rows_of(done), []
    run_grid(mini("dense", "smoe"), done, say=said.append, live=False)
    assert times(done) == before and rows_of(done) == rows
    assert "All 2 cells are done already; there is nothing to run." in said


def test_a_method_or_seed_that_is_added_is_the_only_one_trained(done: Path, mini: Mini) -> None:
    before, rows = times(done), rows_of(done)
    run_grid(mini("dense", "smoe", "hash"), done, say=say_nothing, live=False)
    assert before.items() <= times(done).items()
    assert [row["method"] for row in rows_of(done)] == ["dense", "smoe", "hash"]
    # Asking for less does not lose what is there.
    run_grid(mini("dense", "smoe"), done, say=say_nothing, live=False)
    assert [row["method"] for row in rows_of(done)] == ["dense", "smoe", "hash"] and rows_of(done)[:2] == rows
    protocol = json.loads((done / "results.json").read_text())["protocol"]
    assert set(protocol["mismatch"]) >= {"dense", "smoe", "hash"}


def test_a_plugin_that_changed_is_not_mixed_with_what_it_trained_before(
    mini: Mini, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "changing.py"
    file.write_text(
        "import libmoe\nfrom dataclasses import dataclass\nfrom libmoe.methods.smoe import SMoE\n"
        "@libmoe.register_method('changing', summary='of a test')\n@dataclass(kw_only=True)\nclass A(SMoE): pass\n"
    )
    load_plugin(file)
    run_grid(mini("dense", "smoe", "changing"), done, plugins=[file], say=say_nothing, live=False)
    with file.open("a") as text:
        text.write("# another idea\n")
    with pytest.raises(
        ConfigError, match=r"plugin of 'changing' has changed .* delete \S*changing-s0 to train it anew"
    ):
        run_grid(mini("dense", "smoe", "changing"), done, plugins=[file], say=say_nothing, live=False)


def test_a_grid_in_which_everything_fails_is_an_error(misfits: Path, mini: Mini, tmp_path: Path) -> None:
    grid = mini("dense", "raises")
    grid.baseline = "raises"
    grid.entries = [grid.entry("raises")]
    with pytest.raises(LibMoEError, match="every cell failed; the first says: misfits"):
        run_grid(grid, tmp_path / "out", plugins=[misfits], say=say_nothing, live=False)


# -- the results store ----------------------------------------------------------------------------------------------
def test_each_finished_cell_is_in_the_results_store_once(finished: Finished, mini: Mini) -> None:
    assert finished.folder is not None
    rows = Results(finished.store).query("main")
    cells = {Path(row["folder"]).parent.name: row for row in rows}
    assert len(rows) == len(cells) and set(cells) == {"dense-s0", "smoe-s0", "fragile-s0"}
    smoe = next(row for row in rows_of(finished.folder) if row["method"] == "smoe")
    row = cells["smoe-s0"]
    assert (row["task"], row["method"], row["seed"], row["run"]) == ("moe_cloze", "smoe", 0, "mini/smoe")
    assert row["value"] == pytest.approx(smoe["tasks"]["moe_cloze"]["acc"])
    found = compare([finished.folder / "dense-s0", finished.folder / "smoe-s0"])
    assert [task.name for task in found.tasks] == ["moe_cloze"]


def test_kept_cells_are_recorded_where_they_are_missing_and_only_there(
    done: Path, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    add = Results.add
    monkeypatch.setattr(
        Results, "add", lambda self, place: added.append(place.parent.name) or add(self, place)
    )
    for expected in (["dense-s0", "smoe-s0"], []):
        added.clear()
        run_grid(mini("dense", "smoe"), done, store=tmp_path / "new.db", say=say_nothing, live=False)
        assert added == expected
    run_grid(mini("dense", "smoe"), done, say=say_nothing, live=False)
    assert not added


def test_a_file_that_is_no_store_is_refused_before_anything_runs(mini: Mini, tmp_path: Path) -> None:
    (tmp_path / "results.db").write_text("something else, longer than the head of a database")
    with pytest.raises(DataError, match=r"results store .*results\.db"):
        run_grid(mini("dense"), tmp_path / "out", store=tmp_path / "results.db", say=say_nothing, live=False)
    assert not (tmp_path / "out").exists()


# -- the whole command ----------------------------------------------------------------------------------------------
def start(grid: Path, out: Path, plugin: Path) -> subprocess.Popen[str]:
    where = ["--out", str(out), "--store", str(out.parent / "results.db")]
    return subprocess.Popen(
        [sys.executable, "-m", "libmoe", "bench", str(grid), *where, "--plugin", str(plugin)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_interrupted_and_killed_the_same_command_ends_with_the_same_results(
    misfits: Path, grid_file: Callable[..., Path], tmp_path: Path, finished: Finished
) -> None:
    assert finished.folder is not None
    grid, out = grid_file("dense", "smoe", "slow"), tmp_path / "grid"
    slow = out / "slow-s0"

    process = start(grid, out, misfits)
    for path in (out / "dense-s0" / "row.json", out / "smoe-s0" / "row.json", slow / "metrics.jsonl"):
        wait_for(path, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]]
    assert "interrupted" in err and "Traceback" not in err
    saved = [int(path.name.removeprefix("step-")) for path in (slow / "checkpoints").glob("step-*")]
    assert saved and max(saved) < 6

    process = start(grid, out, misfits)
    wait_for(slow / "checkpoints" / "step-00000004", process)
    process.kill()
    process.communicate()
    kept = times(out / "smoe-s0")
    assert kept and not (slow / "row.json").exists()
    # Its worker has left too: nothing holds the run folder.
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        with contextlib.suppress(ConfigError), hold(slow):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker of a killed command goes on")

    process = start(grid, out, misfits)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert times(out / "smoe-s0") == kept
    dense, smoe, last = comparable(rows_of(out))
    undisturbed = comparable(rows_of(finished.folder))
    assert [dense, smoe] == undisturbed[:2]
    assert last | {"method": "smoe", "label": "smoe", "paper": 23} == smoe
    assert (out / "report.html").exists()
    assert len(Results(tmp_path / "results.db").query("main")) == 3
