"""A real Ray of two worker processes gives the table of the local pool, whatever happens to its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid, run_grid
from libmoe.bench.cell import CellSpec
from libmoe.bench.executors import RayCluster, Resources, ray_cluster
from libmoe.core.errors import ConfigError
from libmoe.core.files import digest
from libmoe.core.plugins import load_plugin
from libmoe.train import provenance
from libmoe.train.recipe import load_recipe

pytestmark = pytest.mark.distributed

Mini = Callable[..., Grid]
WALL_CLOCK = ("tokens_per_second", "peak_memory_bytes", "train_seconds")

ORPHAN = '''"""A router whose supervisor is killed in the fourth step of the first attempt."""
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import libmoe
from libmoe.methods.smoe import SMoE
from libmoe.routers import TopKRouter

CALLS = [0]


class Router(TopKRouter):
    def score(self, logits_TN):
        marker = Path(os.environ["ORPHAN_MARKER"])
        CALLS[0] += self.training
        if CALLS[0] > 7 and not marker.exists():
            marker.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return super().score(logits_TN)


@libmoe.register_method("orphan", summary="of a test")
@dataclass(kw_only=True)
class Orphan(SMoE):
    """smoe, but for what happens to the process above it."""

    def build_router(self, site):
        return Router(site.dim, self.num_experts, self.top_k)
'''


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return {row["method"]: {k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows}


def as_smoe(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"method": "smoe", "label": "smoe", "paper": 23}


def run(grid: Grid, folder: Path, **more: Any) -> list[str]:
    said: list[str] = []
    run_grid(grid, folder, say=said.append, live=False, **more)
    return said


class Undisturbed:
    rows: dict[str, dict[str, Any]] | None = None


@pytest.fixture
def undisturbed(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows of dense and smoe from the local pool."""
    if Undisturbed.rows is None:
        folder = tmp_path_factory.mktemp("pool") / "mini"
        run(mini("dense", "smoe"), folder)
        Undisturbed.rows = rows_of(folder)
    return Undisturbed.rows


@pytest.fixture
def orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "orphan.py"
    file.write_text(ORPHAN)
    monkeypatch.setenv("ORPHAN_MARKER", str(tmp_path / "killed"))
    load_plugin(file)
    return file


def test_two_workers_give_the_table_of_the_local_pool_also_when_a_supervisor_is_killed(
    mini: Mini, orphan: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    out = tmp_path / "grid"
    methods = ("dense", "smoe", "orphan")
    said = run(mini(*methods), out, plugins=[orphan], executor=RayCluster("local", workers=2))
    rows = rows_of(out)
    assert list(rows) == list(methods)
    assert {name: rows[name] for name in ("dense", "smoe")} == undisturbed
    # It went on from where it was.
    assert as_smoe(rows["orphan"]) == undisturbed["smoe"]
    steps = [json.loads(line)["step"] for line in (out / "orphan-s0" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (out / "orphan-s0" / "worker.log").read_text().count("--- orphan seed 0") == 2
    assert sum(line.startswith("[") for line in said) == len(methods)
    assert not list(out.glob(".seen-*"))


def test_what_is_done_is_not_run_again_and_needs_no_cluster(mini: Mini, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    run(mini("dense"), out)
    before = (out / "dense-s0" / "metrics.jsonl").stat().st_mtime_ns
    # Nobody is at this address, and nobody is asked.
    run(mini("dense"), out, executor=RayCluster("127.0.0.1:1"))
    assert (out / "dense-s0" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_machines_that_do_not_see_the_folder_send_their_files(
    mini: Mini,
    orphan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, dict[str, Any]],
) -> None:
    monkeypatch.setattr(ray_cluster, "_mark", lambda folder: contextlib.nullcontext(folder / "not-there"))
    Path(os.environ["ORPHAN_MARKER"]).touch()  # nothing is killed: the plugin is sent as it is
    out = tmp_path / "grid"
    run(mini("dense", "orphan"), out, plugins=[orphan], executor=RayCluster("local", workers=2))
    rows = rows_of(out)
    assert rows["dense"] == undisturbed["dense"] and as_smoe(rows["orphan"]) == undisturbed["smoe"]
    cell = out / "orphan-s0"
    assert [path.name for path in (cell / "checkpoints").iterdir()] == ["step-00000006"]
    for name in (
        "row.json",
        "result.json",
        "eval.json",
        "metrics.jsonl",
        "eval/evaluation.json",
        "worker.log",
    ):
        assert (cell / name).is_file(), name
    # Where the plugin was read from is gone; what is noted is where it is, and what was in it.
    facts = provenance.read(cell)
    assert facts is not None
    assert facts["plugins"] == [{"name": "orphan.py", "sha256": digest(orphan), "path": str(orphan)}]
    # The folder is as good as one that was written here.
    from libmoe.train import checkpoint

    checkpoint.verify(cell / "checkpoints" / "step-00000006")


COMMAND = """
import sys
from pathlib import Path
from libmoe.cli import bench, _terminated_like_interrupted
from libmoe.core.plugins import load_plugin
from libmoe.bench.executors import ray_cluster

grid, out, plugin, sees = sys.argv[1:]
load_plugin(plugin)
if sees == "no":
    import contextlib
    ray_cluster._mark = lambda folder: contextlib.nullcontext(folder / "not-there")
with _terminated_like_interrupted():
    bench.run(grid, Path(out), [], [plugin], ray="local", quiet=True)
"""


def start(folders: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command; machines that do not see the grid make their temporary folders in ``folders``."""
    # Ray's own are elsewhere: paths of sockets must be short.
    temporary = {"TMPDIR": str(folders), "RAY_TMPDIR": tempfile.gettempdir()}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **temporary},
    )


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["yes", "no"])
def test_interrupted_and_killed_the_same_command_ends_with_the_same_rows(
    sees: str,
    misfits: Path,
    grid_file: Callable[..., Path],
    tmp_path: Path,
    undisturbed: dict[str, dict[str, Any]],
) -> None:
    out, grid, folders = tmp_path / "grid", grid_file("dense", "smoe", "slow"), tmp_path / "folders"
    folders.mkdir()
    at_work = out if sees == "yes" else folders
    done = [out / name / "row.json" for name in ("dense-s0", "smoe-s0")]

    def reached(step: int) -> bool:
        return any(at_work.rglob(f"slow-s0/checkpoints/step-{step:08d}"))

    process = start(folders, grid, out, misfits, sees)
    wait_for(lambda: all(row.exists() for row in done) and reached(2), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, err
    kept = (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns
    # What was reached has come home.
    assert list((out / "slow-s0" / "checkpoints").iterdir()) and not (out / "slow-s0" / "row.json").exists()

    process = start(folders, grid, out, misfits, sees)
    wait_for(lambda: reached(4), process)
    process.kill()
    process.communicate()

    process = start(folders, grid, out, misfits, sees)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    rows = rows_of(out)
    assert {name: rows[name] for name in ("dense", "smoe")} == undisturbed
    assert as_smoe(rows["slow"]) == undisturbed["smoe"]
    assert (out / "smoe-s0" / "metrics.jsonl").stat().st_mtime_ns == kept
    assert (out / "report.html").exists()


def test_a_cluster_that_does_not_answer_is_one_line(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ray 127.0.0.1:1: no cluster answers .*ray start --head"):
        run(mini("dense"), tmp_path / "grid", executor=RayCluster("127.0.0.1:1", Resources()))


def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, spec = RayCluster("local"), CellSpec("a", "a", load_recipe("tiny"), str(tmp_path / "a-s0"))

    def refuse(**options: Any) -> None:
        raise Exception(
            "The current node timed out during startup."
        )  # as Ray says it, on a machine that is busy

    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"--ray local: Ray does not start .*timed out.*; try again"):
        cluster.run([spec], tmp_path, started=print, finished=print, tick=lambda: None)
