"""A grid as a SLURM job array: one task a cell, submitted by the user and collected by the same command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.base import MODEST, Executor, Finished, Resources, Say, Started, Tick
from libmoe.bench.pool import PATIENCE, environment
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically

DECIDED = ("array", "output", "error", "signal", "cpus-per-task")
"""Options of sbatch that the script needs as they are."""


class Slurm(Executor):
    """Writes ``cells.jsonl`` and ``job.sbatch``; nothing runs before the user submits the latter.

    The folder of the grid must be visible to the compute nodes under the same path.

    Args:
        jobs: folder for the two files, and for the logs of the tasks.
        options: further options of sbatch, ``NAME=VALUE`` or ``NAME`` (``partition=gpu``, ``time=04:00:00``).

    Raises:
        ConfigError: an option that the script itself decides, or a part of a GPU.
    """

    def __init__(
        self,
        jobs: str | Path,
        resources: Resources = MODEST,
        options: Sequence[str] = (),
        say: Say = print,
    ) -> None:
        if resources.gpus % 1:
            raise ConfigError(f"resources.gpus={resources.gpus}: SLURM gives whole GPUs; use 1")
        self.jobs, self.resources, self.say = Path(jobs).absolute(), resources, say
        self.options = dict(map(_option, options))
        self.threads = resources.cpus or 1

    def run(
        self, specs: Sequence[CellSpec], folder: Path, *, started: Started, finished: Finished, tick: Tick
    ) -> None:
        """Write the files for ``specs``; those that have failed before are reported, and put in once more."""
        for spec in specs:
            if (row := _failed_before(spec)) is not None:
                finished(spec, row)
        script, cells = self.jobs / "job.sbatch", self.jobs / "cells.jsonl"
        if not specs:
            self.say("Every cell is done; there is nothing to submit.")
            return
        (self.jobs / "logs").mkdir(parents=True, exist_ok=True)
        write_atomically(cells, "".join(spec.to_json() + "\n" for spec in specs).encode())
        write_atomically(script, self._script(folder, len(specs)).encode())
        self.say(f"{len(specs)} cells are in {cells}. Submit them with: sbatch {shlex.quote(str(script))}")

    def _script(self, folder: Path, count: int) -> str:
        resources = self.resources
        options: dict[str, str | None] = {
            "job-name": f"libmoe-{folder.name}",
            "array": f"0-{count - 1}",
            "cpus-per-task": str(self.threads),
            "gres": f"gpu:{resources.gpus:.0f}" if resources.gpus else None,
            "mem": f"{round(resources.memory_gb * 1024)}M" if resources.memory_gb else None,
            "output": str(self.jobs / "logs" / "%a.log"),
            "open-mode": "append",
            "signal": f"B:TERM@{round(1.5 * PATIENCE)}",  # time to finish the step and save, before the limit
        }
        given = {name: value for name, value in options.items() if value is not None} | self.options
        lines = [f"#SBATCH --{name}{f'={value}' if value else ''}" for name, value in given.items()]
        cells = shlex.quote(str(self.jobs / "cells.jsonl"))
        python_path = shlex.quote(environment(self.threads)["PYTHONPATH"])
        return "\n".join(
            [
                "#!/bin/bash",
                *lines,
                "#SBATCH --requeue",
                f"cd {shlex.quote(os.getcwd())} || exit 1",
                f"export PYTHONPATH={python_path}",
                # In place of the shell, so that the signal reaches the process that saves.
                f'exec {shlex.quote(sys.executable)} -P -m libmoe.bench.worker --cell {cells} "$SLURM_ARRAY_TASK_ID"',
                "",
            ]
        )


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.strip().lstrip("-").partition("=")
    if not name or not text.isprintable():
        raise ConfigError(
            f"SLURM option {text!r} cannot be read; write it as NAME=VALUE, for example partition=gpu"
        )
    if name in DECIDED:
        raise ConfigError(
            f"SLURM option {name!r} is decided by the cells and their resources; give it to sbatch on the command line"
        )
    return name, value


def _failed_before(spec: CellSpec) -> dict[str, Any] | None:
    try:
        row = json.loads(spec.row_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("status") == "failed" else None
