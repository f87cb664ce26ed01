"""What counting cannot tell: seconds of a training step and its peak memory, from a few real steps."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import to_json, write_json
from libmoe.train import train
from libmoe.train.recipe import Recipe

WARM_UP = 2
"""Steps that are not counted: they allocate, choose kernels and fill caches."""


@dataclass(frozen=True)
class Calibration:
    """A short measurement.

    Attributes:
        seconds_per_step: median of the steps after the first two, evaluation and saving left out.
        spread: half the distance between the quartiles, as a share of the median: what ``wall_clock`` cannot resolve.
        steps: how many were counted.
        peak_memory_bytes: as :class:`libmoe.train.memory.PeakMemory` measures it.
    """

    seconds_per_step: float
    spread: float
    steps: int
    peak_memory_bytes: int


def measure_steps(recipe: Recipe, steps: int) -> Calibration:
    """Train ``steps + 2`` steps in a folder that is thrown away, through the loop that every run goes through.

    A method whose cost changes as it trains (thresholds that sparsify, experts that are added) is measured as it
    begins.
    """
    total = steps + WARM_UP
    short = replace(
        recipe.train, steps=total, warmup_steps=0, schedule="constant", log_every=1, eval_every=None,
        save_every=None, trackers=[],
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="libmoe-calibration-") as folder:
        result = train(replace(recipe, train=short), folder, quiet=True)
        lines = (Path(folder) / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [json.loads(line)["seconds"] for line in lines]
    each = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    median = statistics.median(each)
    quartiles = statistics.quantiles(each, n=4)
    return Calibration(
        median, (quartiles[2] - quartiles[0]) / 2 / median, len(each), result.peak_memory_bytes
    )


@dataclass
class Calibrator:
    """Measures each recipe once and remembers it.

    A comparison that is resumed must solve to the same steps, so what was measured is kept in a file beside its cells.

    Attributes:
        path: that file; ``None`` keeps measurements in memory alone.
        steps: counted steps of a measurement, two at least.
        threads: CPU threads, those that a cell will have; ``None`` leaves the process's.
        measure: how; the tests plant clocks here.

    Raises:
        ConfigError: too few steps, or the file is damaged.
    """

    path: Path | None = None
    steps: int = 8
    threads: int | None = None
    measure: Callable[[Recipe, int], Calibration] = measure_steps
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigError(
                f"calibration_steps must be at least 2, got {self.steps}; a median needs more than one"
            )
        if self.path is not None and self.path.exists():
            try:
                self.known = json.loads(self.path.read_text(encoding="utf-8"))
                [Calibration(**values) for values in self.known.values()]
            except (ValueError, TypeError, AttributeError):
                raise ConfigError(f"{self.path} is damaged; delete it to measure anew") from None

    def __call__(self, recipe: Recipe) -> Calibration:
        key = hashlib.sha256(
            to_json([self._what_matters(recipe), self.steps, self.threads]).encode()
        ).hexdigest()
        if key not in self.known:
            self.known[key] = asdict(self._measured(recipe))
            if self.path is not None:
                write_json(self.path, self.known)
        return Calibration(**self.known[key])

    def _measured(self, recipe: Recipe) -> Calibration:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(self.threads or before)
            return self.measure(recipe, self.steps)
        finally:
            torch.set_num_threads(before)

    @staticmethod
    def _what_matters(recipe: Recipe) -> dict[str, Any]:
        """The recipe without what changes no step: names, seed, evaluation and the length of the run."""
        values = to_dict(recipe)
        for key in ("name", "seed", "eval"):
            del values[key]
        for key in (
            "steps",
            "warmup_steps",
            "schedule",
            "lr",
            "log_every",
            "eval_every",
            "save_every",
            "trackers",
        ):
            del values["train"][key]
        return values
