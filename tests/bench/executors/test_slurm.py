"""A job array runs each cell once, and the same command collects what it left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid, run_grid
from libmoe.bench.executors import Resources, Slurm
from libmoe.core.errors import ConfigError

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


def test_an_array_runs_every_cell_and_the_same_command_collects(
    mini: Mini, misfits: Path, tmp_path: Path
) -> None:
    out, jobs, said = tmp_path / "my grid", tmp_path / "jobs", []
    grid = mini("dense", "smoe", "slow", "doomed")
    run_grid(grid, out, plugins=[misfits], executor=Slurm(jobs, say=said.append), say=said.append, live=False)
    script = jobs / "job.sbatch"
    assert said[-1] == f"4 cells are in {jobs / 'cells.jsonl'}. Submit them with: sbatch {script}"
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

    # What is left is put into a new array; the failure is told, with the place of its log.
    said.clear()
    run_grid(grid, out, plugins=[misfits], executor=Slurm(jobs, say=said.append), say=said.append, live=False)
    assert len(tasks_of(script)) == 2 and "2 of 4 cells are done already and are kept." in said
    assert rows_of(out)["doomed"]["status"] == "failed"
    assert str(out / "doomed-s0" / "worker-") in rows_of(out)["doomed"]["error"]

    # Without the flag: finished rows are collected, and what is missing runs here.
    kept = (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns
    run_grid(grid, out, plugins=[misfits], say=said.append, live=False)
    rows = rows_of(out)
    assert list(rows) == ["dense", "smoe", "slow", "doomed"]
    assert rows["slow"] | {"method": "smoe", "label": "smoe", "paper": 23} == rows["smoe"]
    assert (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns == kept


def test_resources_and_options_are_in_the_script(mini: Mini, tmp_path: Path) -> None:
    resources = Resources(cpus=4, gpus=2, memory_gb=1.5)
    slurm = Slurm(
        tmp_path / "jobs", resources, ["partition=gpu", "--time=04:00:00", "exclusive"], lambda line: None
    )
    run_grid(mini("dense"), tmp_path / "grid", executor=slurm, say=lambda line: None, live=False)
    lines = (tmp_path / "jobs" / "job.sbatch").read_text().splitlines()
    for line in ("cpus-per-task=4", "gres=gpu:2", "mem=1536M", "partition=gpu", "time=04:00:00", "exclusive"):
        assert f"#SBATCH --{line}" in lines
    cell = json.loads((tmp_path / "jobs" / "cells.jsonl").read_text())
    assert cell["threads"] == 4 and cell["key"] == "dense"


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
