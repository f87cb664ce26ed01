"""A grid as a SLURM job array: one task a cell, submitted by the user and collected by the same command."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.base import MODEST, Executor, Finished, Resources, Say, Started, Tick
from libmoe.bench.pool import PATIENCE, environment
from libmoe.core.errors import ConfigError
from libmoe.core.files import read_json, write_atomically

DECIDED = ("array", "output", "error", "signal", "cpus-per-task")
"""Options of sbatch that the script needs as they are."""


class Slurm(Executor):
    """Writes a file of cells and ``job.sbatch``; nothing runs before the user submits the latter.

    The file of cells is named after what is in it, so that an array that reads it is not disturbed when the same
    command writes another one.  The folder of the grid must be visible to the compute nodes under the same path.

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
        """Write the files for ``specs``; of those that have failed before, it is said how, and they are put in again.

        Raises:
            ConfigError: a name that no line of the script can hold.
        """
        if not specs:
            self.say("There is nothing to submit.")
            return
        content = "".join(spec.to_json() + "\n" for spec in specs).encode()
        cells = self.jobs / f"cells-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
        script = self.jobs / "job.sbatch"
        text = self._script(folder, cells, len(specs))
        (self.jobs / "logs").mkdir(parents=True, exist_ok=True)
        write_atomically(cells, content)
        write_atomically(script, text.encode())
        for spec in specs:
            row = read_json(spec.row_file) or {}
            if row.get("status") == "failed":
                self.say(f"{spec.name} failed before and is put in again: {row['error']}")
        self.say(f"{len(specs)} cells are in {cells}. Submit them with: sbatch {shlex.quote(str(script))}")
        tick()

    def _script(self, folder: Path, cells: Path, count: int) -> str:
        resources = self.resources
        options: dict[str, str | None] = {
            "job-name": f"libmoe-{folder.name}",
            "array": f"0-{count - 1}",
            "cpus-per-task": str(self.threads),
            "gres": f"gpu:{resources.gpus:.0f}" if resources.gpus else None,
            "mem": f"{math.ceil(resources.memory_bytes / 2**20)}M" if resources.memory_bytes else None,
            "output": str(self.jobs / "logs").replace("%", "%%") + "/%a.log",
            "open-mode": "append",
            "signal": f"B:TERM@{round(1.5 * PATIENCE)}",  # time to finish the step and save, before the limit
            "requeue": "",
        }
        given = {name: value for name, value in options.items() if value is not None} | self.options
        python_path = shlex.quote(environment(self.threads)["PYTHONPATH"])
        return "\n".join(
            [
                "#!/bin/bash",
                *(_line(name, value) for name, value in given.items()),
                f"cd {shlex.quote(os.getcwd())} || exit 1",
                f"export PYTHONPATH={python_path}",
                # In place of the shell, so that the signal reaches the process that saves.
                f"exec {shlex.quote(sys.executable)} -P -m libmoe.bench.worker --cell {shlex.quote(str(cells))} "
                '"$SLURM_ARRAY_TASK_ID"',
                "",
            ]
        )


def _line(name: str, value: str) -> str:
    """An option in the script; sbatch reads quotes as a shell does, but takes a line for one option."""
    if not value.isprintable():
        raise ConfigError(
            f"SLURM option {name}={value!r} cannot be written into a script; use a name without line breaks"
        )
    return f"#SBATCH --{name}{f'={shlex.quote(value)}' if value else ''}"


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
