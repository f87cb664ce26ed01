"""A job array runs each cell once, and the same command collects what it left."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from libmoe.bench import Grid, pool, run_grid
from libmoe.bench.cell import CellSpec
from libmoe.bench.executors import Resources, Slurm
from libmoe.bench.pool import LOCK
from libmoe.bench.worker import run_alone
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold
from libmoe.train.recipe import load_recipe

Mini = Callable[..., Grid]
WALL_CLOCK = ("tokens_per_second", "peak_memory_bytes", "train_seconds")


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return {row["method"]: {k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows}


def tasks_of(script: Path) -> range:
    (last,) = re.findall(r"^#SBATCH --array=0-(\d+)$", script.read_text(), re.MULTILINE)
    return range(int(last) + 1)


def begin(script: Path, task: int) -> subprocess.Popen[str]:
    """What SLURM does for one task of an array."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "SLURM_ARRAY_TASK_ID": str(task)
    }
    return subprocess.Popen(
        ["bash", str(script)],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def submit(script: Path, task: int) -> tuple[int, str]:
    process = begin(script, task)
    out, _ = process.communicate(timeout=180)
    return process.returncode, out


@pytest.mark.slow
def test_an_array_runs_every_cell_and_the_same_command_collects(
    mini: Mini, misfits: Path, tmp_path: Path
) -> None:
    out, jobs, said = tmp_path / "my grid", tmp_path / "jobs", []
    grid = mini("dense", "smoe", "slow", "doomed")
    run_grid(grid, out, plugins=[misfits], executor=Slurm(jobs, say=said.append), say=said.append, live=False)
    script = jobs / "job.sbatch"
    (cells,) = jobs.glob("cells-*.jsonl")
    assert said[-1] == f"4 cells are in {cells}. Submit them with: sbatch {script}"
    assert not (out / "results.json").exists()
    assert len(tasks_of(script)) == 4

    assert submit(script, 0)[0] == 0 and submit(script, 1)[0] == 0
    code, text = submit(script, 3)
    assert code == 1 and "was killed (SIGKILL), twice" in text
    # The time limit: SLURM sends SIGTERM, and the cell saves.
    process = begin(script, 2)
    slow = out / "slow-s0"
    limit = time.monotonic() + 60
    while not (slow / "checkpoints" / "step-00000002").exists():
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and not (slow / "row.json").exists()

    # What is left is put into a new array beside the old one; the failure is told, with the place of its log.
    said.clear()
    run_grid(grid, out, plugins=[misfits], executor=Slurm(jobs, say=said.append), say=said.append, live=False)
    assert len(tasks_of(script)) == 2 and "2 of 4 cells are done already and are kept." in said
    assert len(list(jobs.glob("cells-*.jsonl"))) == 2 and len(cells.read_text().splitlines()) == 4
    (told,) = (line for line in said if line.startswith("doomed seed 0 failed before and is put in again: "))
    assert str(out / "doomed-s0" / "worker-") in told
    known = {
        key: row["status"] for key, row in rows_of(out).items()
    }  # how one failed is known until it is over
    assert known == {"dense": "ok", "smoe": "ok", "doomed": "failed"}

    # Without the flag: finished rows are collected, and what is missing runs here.
    kept = (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns
    run_grid(grid, out, plugins=[misfits], say=said.append, live=False)
    rows = rows_of(out)
    assert list(rows) == ["dense", "smoe", "slow", "doomed"]
    assert rows["slow"] | {"method": "smoe", "label": "smoe", "paper": 23} == rows["smoe"]
    assert (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns == kept


def written(jobs: Path, folder: Path, *options: str, resources: Resources | None = None) -> list[str]:
    """Options in the script for a cell that is never run, as sbatch reads them: quotes as in a shell."""
    spec = CellSpec("dense", "dense", load_recipe("tiny"), str(folder / "dense-s0"))
    slurm = Slurm(jobs, resources or Resources(), options, say=lambda line: None)
    slurm.run([spec], folder, started=print, finished=print, tick=lambda: None)
    lines = (jobs / "job.sbatch").read_text().splitlines()
    return [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line[8:])]


def test_resources_and_options_are_in_the_script(tmp_path: Path) -> None:
    resources = Resources(cpus=4, gpus=2, memory_gb=1.5)
    options = written(
        tmp_path, tmp_path / "grid", "partition=gpu", "--time=04:00:00", "exclusive", resources=resources
    )
    # A gigabyte is 10^9 bytes everywhere; SLURM counts in units of 2^20.
    for option in (
        "cpus-per-task=4",
        "gres=gpu:2",
        "mem=1431M",
        "partition=gpu",
        "time=04:00:00",
        "exclusive",
    ):
        assert f"--{option}" in options


def test_names_with_spaces_quotes_and_percents_reach_sbatch_as_they_are(tmp_path: Path) -> None:
    jobs = tmp_path / "50% of it's jobs"
    options = written(jobs, tmp_path / "my grid", "comment=a b # c", "no-requeue")
    assert "--job-name=libmoe-my grid" in options and "--comment=a b # c" in options
    assert f"--output={tmp_path}/50%% of it's jobs/logs/%a.log" in options
    assert options.index("--requeue") < options.index("--no-requeue")  # the user's has the last word
    with pytest.raises(ConfigError, match=r"job-name='libmoe-a\\nb' cannot be written"):
        written(tmp_path / "other", tmp_path / "a\nb")
    assert not (tmp_path / "other").exists()


def test_an_array_that_is_being_read_is_not_changed_by_the_next(tmp_path: Path) -> None:
    written(tmp_path, tmp_path / "one")
    (first,) = tmp_path.glob("cells-*.jsonl")
    before = first.read_bytes()
    assert str(first) in (tmp_path / "job.sbatch").read_text()
    written(tmp_path, tmp_path / "two")
    (second,) = set(tmp_path.glob("cells-*.jsonl")) - {first}
    assert first.read_bytes() == before and str(second) in (tmp_path / "job.sbatch").read_text()


def test_a_task_leaves_a_cell_alone_that_another_task_sees_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "jobs", tmp_path / "grid")
    (cells,) = (tmp_path / "jobs").glob("cells-*.jsonl")
    cell = tmp_path / "grid" / "dense-s0"
    with hold(cell, LOCK):
        assert run_alone(cells, "0") == 1
    assert "dense-s0 is in use by another process" in capsys.readouterr().err
    assert [path.name for path in cell.iterdir()] == [LOCK]


def test_a_task_holds_its_cell_as_long_as_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "jobs", tmp_path / "grid")
    (cells,) = (tmp_path / "jobs").glob("cells-*.jsonl")
    seen = []

    class Done:
        def __init__(self, log: Path, threads: int, events: Any, cwd: Path | None = None) -> None:
            self.log, self.events, self.process = log, events, SimpleNamespace(poll=lambda: 0)

        def submit(self, spec: CellSpec) -> None:
            try:
                with hold(spec.run_dir, LOCK):
                    seen.append("free")
            except ConfigError:
                seen.append("held")
            self.events.put((self, {"status": "ok"}))

        def close(self) -> None: ...

    monkeypatch.setattr(pool, "Worker", Done)
    assert run_alone(cells, "0") == 0 and seen == ["held"]
    with hold(tmp_path / "grid" / "dense-s0", LOCK):
        pass


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("array=0-3", "decided by the cells"),
        ("partition=a\n#SBATCH --uid=0", "write it as NAME=VALUE"),
        ("=gpu", "write it as NAME=VALUE"),
    ],
)
def test_options_that_break_the_script_are_refused(option: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        Slurm(tmp_path, options=[option])


def test_a_part_of_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole GPUs; use 1"):
        Slurm(tmp_path, Resources(gpus=0.5))


def test_a_cell_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cells.jsonl").write_text("{}\n")
    done = subprocess.run(
        [sys.executable, "-m", "libmoe.bench.worker", "--cell", str(tmp_path / "cells.jsonl"), "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 2
        and done.stderr == f"error: {tmp_path / 'cells.jsonl'} has no cell 1; choose 0 to 0\n"
    )
    with pytest.raises(ConfigError, match=r"cannot be read .*; write it anew with --slurm"):
        run_alone(tmp_path / "gone.jsonl", "0")
