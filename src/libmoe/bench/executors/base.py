"""What runs the cells of a grid: the contract, and what one cell may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.live import last_metrics
from libmoe.core.errors import ConfigError

Started = Callable[[CellSpec], None]
Finished = Callable[[CellSpec, dict[str, Any]], None]
Tick = Callable[[], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Resources:
    """What one cell needs.

    Attributes:
        cpus: cores, and the threads it computes with.  ``None`` leaves it to the executor: on one machine each of
            the cells that run at once gets its share of the cores, on a cluster each gets one core.
        gpus: may be a fraction where several cells share one (not with SLURM).
        memory_gb: gigabytes (10^9 bytes) of main memory; ``None`` asks for no particular amount.

    Raises:
        ConfigError: less than one core, or a negative amount.
    """

    cpus: int | None = None
    gpus: float = 0.0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ConfigError(f"resources.cpus must be at least 1, got {self.cpus}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ConfigError(f"resources.gpus must be a share of one GPU or a whole number, got {self.gpus}")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ConfigError(f"resources.memory_gb must be greater than 0, got {self.memory_gb}")

    @property
    def memory_bytes(self) -> int:
        """Bytes of main memory; 0 for no particular amount."""
        return round((self.memory_gb or 0) * 1e9)


MODEST = Resources()
"""One cell that asks for nothing in particular."""


class Executor(ABC):
    """Runs cells somewhere; where, makes no difference to the numbers as long as ``threads`` are the same.

    Attributes:
        threads: CPU threads that each cell computes with.
        here: cells run on this machine alone, so that what is measured on it holds for them.
    """

    threads: int
    here: bool = False

    @abstractmethod
    def run(
        self, specs: Sequence[CellSpec], folder: Path, *, started: Started, finished: Finished, tick: Tick
    ) -> None:
        """Run every cell of ``specs`` for the grid in ``folder``.

        When it returns, each run folder is on this machine, with ``row.json`` where the cell is over.  A cell whose
        process dies is run once more and goes on from its newest checkpoint; then it counts as failed, as does one
        whose folder another process holds.  Interrupted by any exception, also one that a callback raises, it lets
        the cells at work finish their step and save; interrupted again, it ends them at once.

        Callbacks come from the thread that called this, one after the other.  An executor that hands its cells over
        to another system makes none but ``tick``: nothing is known of them yet when it returns.

        Args:
            started: called before ``finished`` when a cell is at work; again, when it is run once more.
            finished: called once for each cell that is completed or has failed for good, with its row.  All have been
                called when this returns without an exception.
            tick: called at least once a second or so, and when all is over.
        """

    def metrics(self, spec: CellSpec) -> dict[str, Any]:
        """The newest line of metrics of a cell at work, or an empty dictionary."""
        return last_metrics(spec.run_dir)
