"""Cells on processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.base import MODEST, Executor, Finished, Resources, Started, Tick
from libmoe.bench.pool import run_pool
from libmoe.core.errors import ConfigError


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(workers: int, resources: Resources) -> tuple[int, int]:
    """How many cells run at once on this machine, and the threads of each."""
    count = max(1, min(workers, cores() // (resources.cpus or 1)))
    return count, resources.cpus or max(1, cores() // count)


class LocalPool(Executor):
    """At most ``workers`` cells at once, and no more than there are cores for.

    Raises:
        ConfigError: GPUs or memory are asked for, which nobody gives out on one machine.
    """

    here = True

    def __init__(self, workers: int, resources: Resources = MODEST) -> None:
        for name in ("gpus", "memory_gb"):
            if getattr(resources, name):
                raise ConfigError(
                    f"resources.{name}={getattr(resources, name):g} is for a cluster (--ray or --slurm); cells of this "
                    "machine share what it has: leave it out, or lower the workers"
                )
        self.count, self.threads = share(workers, resources)

    def run(
        self, specs: Sequence[CellSpec], folder: Path, *, started: Started, finished: Finished, tick: Tick
    ) -> None:
        run_pool(specs, self.count, folder, started=started, finished=finished, tick=tick)
