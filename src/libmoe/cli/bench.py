"""``libmoe quickstart``, ``libmoe bench`` and ``libmoe report``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from libmoe.cli.output import emit_json, say
from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from libmoe.bench.executors import Executor, Resources


def run(
    source: str,
    out: Path | None,
    overrides: Sequence[str],
    plugins: Sequence[str],
    *,
    add: Sequence[str] = (),
    only: Sequence[str] = (),
    ray: str | None = None,
    slurm: Path | None = None,
    slurm_options: Sequence[str] = (),
    cpus: int | None = None,
    gpus: float = 0.0,
    memory_gb: float | None = None,
    store: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Exits with code 1 when a cell failed: what the others gave is reported all the same.

    Args:
        ray: address of a Ray cluster, ``auto`` or ``local``; by default cells run on processes of this machine.
        slurm: folder for the files of a job array, which are written instead of running anything.
        slurm_options: further options of sbatch, ``NAME=VALUE``.
        cpus: of each cell.
        gpus, memory_gb: what each cell asks a cluster for.
        store: results store in which evaluations are recorded; ``None`` for none.
    """
    from libmoe.bench import load_grid, run_grid
    from libmoe.bench.executors import Resources

    begun = time.monotonic()
    grid = load_grid(source, overrides)
    if only:
        grid.select([key for key in only if key not in add])
    for name in add:
        grid.add_method(name)
    folder = out or Path("runs") / grid.name
    executor = _executor(grid.workers, Resources(cpus, gpus, memory_gb), ray, slurm, slurm_options)
    seeds = f"{'up to ' if grid.until is not None else ''}{len(grid.seeds)}"
    say(f"{len(grid.entries)} methods x {seeds} seeds -> {folder}")
    left = run_grid(grid, folder, plugins=plugins, executor=executor, store=store, say=say, live=not quiet)
    if left:
        say(
            f"When the {len(left)} jobs have ended, the same command without --slurm goes on with what they left, and "
            "writes the report."
        )
        return
    html = write_report(folder)
    say(f"Done in {(time.monotonic() - begun) / 60:.1f} minutes. Open {html} in a browser.")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if as_json:
        emit_json(results)
    if any(row["status"] != "ok" for row in results["rows"]):
        raise typer.Exit(1)


def _executor(
    workers: int, resources: Resources, ray: str | None, slurm: Path | None, slurm_options: Sequence[str]
) -> Executor:
    from libmoe.bench.executors import LocalPool, RayCluster, Slurm

    if ray is not None and slurm is not None:
        raise ConfigError("--ray and --slurm are two places to run in; give one of them")
    if slurm_options and slurm is None:
        raise ConfigError(f"--slurm-option {slurm_options[0]} needs --slurm FOLDER")
    if ray is not None:
        return RayCluster(ray, resources, workers=workers, say=say)
    if slurm is not None:
        return Slurm(slurm, resources, slurm_options, say=say)
    return LocalPool(workers, resources)


def write_report(folder: Path) -> Path:
    from libmoe.report import summarise
    from libmoe.report import write_report as write

    paths = write(folder)
    for line in summarise(folder)["headline"]:
        say(line)
    return paths.html
