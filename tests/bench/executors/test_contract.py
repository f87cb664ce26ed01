"""What every executor promises: which callbacks come when, what is on disk afterwards, and the same rows everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid
from libmoe.bench.cell import CellSpec
from libmoe.bench.executors import Executor, LocalPool, RayCluster, Resources, Slurm
from libmoe.bench.origin import origin_of
from libmoe.bench.pool import LOCK
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold

pytestmark = pytest.mark.distributed

Mini = Callable[..., Grid]
WALL_CLOCK = ("tokens_per_second", "peak_memory_bytes", "train_seconds")
ONE = Resources(cpus=1)
MAKE: dict[str, Callable[[Path], Executor]] = {
    "local": lambda jobs: LocalPool(2, ONE),
    "ray": lambda jobs: RayCluster("local", ONE, workers=2),
    "slurm": lambda jobs: Slurm(jobs, ONE, say=lambda line: None),
}


class Calls:
    """Callbacks as they come: ``("started", key)``, ``("finished", key)``, ``("tick", "")``."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.threads: set[threading.Thread] = set()

    def note(self, what: str, key: str = "") -> None:
        self.threads.add(threading.current_thread())
        self.made.append((what, key))

    def started(self, spec: CellSpec) -> None:
        self.note("started", spec.key)

    def finished(self, spec: CellSpec, row: dict[str, Any]) -> None:
        self.note("finished", spec.key)
        self.rows[spec.key] = row

    def tick(self) -> None:
        self.note("tick")

    def run(self, executor: Executor, specs: Sequence[CellSpec], folder: Path) -> None:
        executor.run(specs, folder, started=self.started, finished=self.finished, tick=self.tick)

    def of(self, key: str) -> list[str]:
        return [what for what, of in self.made if of == key]


def cells(grid: Grid, folder: Path, *plugins: Path) -> list[CellSpec]:
    recipes = {entry.key: grid.cell_recipe(entry, 0, entry.options) for entry in grid.entries}
    return [
        CellSpec(
            key=entry.key,
            label=entry.label,
            recipe=recipes[entry.key],
            run_dir=str(folder / f"{entry.key}-s0"),
            plugins=tuple(map(str, plugins)),
            origin=origin_of(recipes[entry.key]),
        )
        for entry in grid.entries
    ]


def submit(script: Path) -> None:
    """What SLURM does with an array."""
    (last,) = re.findall(r"^#SBATCH --array=0-(\d+)$", script.read_text(), re.MULTILINE)
    tasks = [{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)} for task in range(int(last) + 1)]
    for process in [
        subprocess.Popen(["bash", str(script)], env=task, stderr=subprocess.DEVNULL) for task in tasks
    ]:
        process.wait(timeout=300)


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """The row without times, and without the place of the log of a cell that was lost."""
    kept = {key: value for key, value in row.items() if key not in WALL_CLOCK}
    return kept | {"error": row["error"] and row["error"].partition(" (details:")[0]}


class Known:
    """Rows of the first executor that was asked."""

    rows: dict[str, dict[str, Any]] | None = None


CLUSTERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("ray", "slurm")]  # they have tests of their own


@pytest.mark.parametrize("name", ["local", *CLUSTERS])
def test_callbacks_are_those_of_the_contract_and_rows_on_disk_are_the_same_everywhere(
    name: str, mini: Mini, misfits: Path, tmp_path: Path
) -> None:
    misfits.with_suffix(".died").unlink(missing_ok=True)  # "fragile" dies once for each executor
    specs = cells(mini("dense", "fragile", "doomed", "raises"), tmp_path / "grid", misfits)
    executor, calls = MAKE[name](tmp_path / "jobs"), Calls()
    calls.run(executor, specs, tmp_path / "grid")
    assert calls.threads == {threading.current_thread()} and calls.made[-1] == ("tick", "")
    if name == "slurm":  # handed over: nothing is known yet
        assert calls.made == [("tick", "")] and not any(spec.row_file.exists() for spec in specs)
        submit(tmp_path / "jobs" / "job.sbatch")
    else:
        for key in ("dense", "raises"):
            assert calls.of(key) == ["started", "finished"], key
        for key in ("fragile", "doomed"):  # their processes die, and they are run once more
            assert calls.of(key) == ["started", "started", "finished"], key
        assert calls.rows == {spec.key: json.loads(spec.row_file.read_text()) for spec in specs}
    rows = {spec.key: comparable(json.loads(spec.row_file.read_text())) for spec in specs}
    assert [row["status"] for row in rows.values()] == ["ok", "ok", "failed", "failed"]
    assert "was killed (SIGKILL), twice" in rows["doomed"]["error"]
    assert "this router does not work" in rows["raises"]["error"]
    Known.rows = Known.rows or rows
    assert rows == Known.rows


@pytest.mark.parametrize("name", MAKE)
def test_without_cells_nothing_is_called_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    calls = Calls()
    calls.run(MAKE[name](tmp_path / "jobs"), [], tmp_path / "grid")
    assert {what for what, _ in calls.made} <= {"tick"}
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("executor", "here"),
    [
        (LocalPool(2), True),
        (RayCluster("local"), True),
        (RayCluster("auto"), False),
        (RayCluster("10.0.0.5:6379"), False),
        (Slurm("jobs"), False),
    ],
)
def test_executors_say_whether_what_is_measured_here_holds_for_their_cells(
    executor: Executor, here: bool
) -> None:
    assert executor.here is here


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("name", ["local", CLUSTERS[0]])
def test_what_a_callback_raises_comes_through_after_the_cells_have_saved(
    name: str, mini: Mini, misfits: Path, tmp_path: Path
) -> None:
    (spec,) = (s for s in cells(mini("dense", "slow"), tmp_path / "grid", misfits) if s.key == "slow")
    run_dir, calls = Path(spec.run_dir), Calls()

    def tick() -> None:
        if (run_dir / "checkpoints" / "step-00000002").exists():
            raise EnoughError

    calls.tick = tick  # type: ignore[method-assign]
    with pytest.raises(EnoughError):
        calls.run(MAKE[name](tmp_path / "jobs"), [spec], tmp_path / "grid")
    assert calls.made == [("started", "slow")] and not spec.row_file.exists()
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").open()]
    assert (run_dir / "checkpoints" / f"step-{steps[-1]:08d}").is_dir() and steps[-1] < 6
    with hold(run_dir), hold(run_dir, LOCK):
        pass  # nobody is at work on it any more


def test_a_cell_that_another_process_sees_to_is_left_alone_and_the_others_go_on(
    mini: Mini, tmp_path: Path
) -> None:
    specs, calls = cells(mini("dense", "smoe"), tmp_path / "grid"), Calls()
    with hold(specs[0].run_dir, LOCK):
        calls.run(LocalPool(2, ONE), specs, tmp_path / "grid")
    assert calls.of("dense") == ["finished"] and "in use by another process" in calls.rows["dense"]["error"]
    assert not specs[0].row_file.exists()
    assert calls.rows["smoe"]["status"] == "ok"


@pytest.mark.parametrize(("name", "value"), [("gpus", 1), ("memory_gb", 2)])
def test_what_nobody_gives_out_on_one_machine_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"resources\.{name}={value} is for a cluster"):
        LocalPool(2, Resources(**{name: value}))  # type: ignore[arg-type]
