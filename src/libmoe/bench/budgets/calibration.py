"""What counting cannot tell: seconds of a training step and its peak memory, from a few real steps."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import to_json, write_json
from libmoe.train import train
from libmoe.train.recipe import Recipe

WARM_UP = 2
"""Steps that are not counted: they allocate, choose kernels and fill caches."""
ROUNDS = 3
"""So often all entries are measured, one after another."""
_NO_MATTER = {
    "": ("name", "seed", "eval"),
    "data": ("unique_tokens",),
    "train": (
        "steps", "warmup_steps", "schedule", "lr", "min_lr_ratio", "decay_fraction", "log_every", "eval_every",
        "save_every", "keep_checkpoints", "keep_optimizers", "trackers",
    ),
}  # fmt: skip
"""Keys of a recipe that change no step: names, seed, evaluation and the length of the run."""


@dataclass(frozen=True)
class Steps:
    """Measured steps.

    Attributes:
        seconds: of each, evaluation and saving left out.
        peak_memory_bytes: as :class:`libmoe.train.memory.PeakMemory` measures it.
    """

    seconds: list[float]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Clock:
    """Time of an entry's steps, and of the baseline's in the same rounds.

    Attributes:
        seconds_per_step: median over all rounds.
        baseline_seconds_per_step: that times the median, over rounds, of the baseline's share of it: what slows a whole
            round down changes neither the share nor what is solved from it.
        spread: half the distance between the largest and the smallest of these shares, as a share of their median:
            what ``wall_clock`` cannot resolve.
    """

    seconds_per_step: float
    baseline_seconds_per_step: float
    spread: float


def measure_steps(recipe: Recipe, steps: int) -> Steps:
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
    return Steps(each, result.peak_memory_bytes)


class Calibrator:
    """Measures each recipe once and remembers it.

    A comparison that is resumed must solve to the same steps, so what was measured is kept in a file beside its cells;
    who resumes it with how many threads makes no difference.

    Args:
        path: that file; ``None`` keeps measurements in memory alone.
        steps: counted steps of each recipe in a round, two at least.
        threads: CPU threads, those that a cell will have; ``None`` leaves the process's.
        measure: how; the tests plant clocks here.

    Raises:
        ConfigError: too few steps, or the file is damaged.
    """

    def __init__(
        self,
        path: Path | None = None,
        steps: int = 8,
        threads: int | None = None,
        measure: Callable[[Recipe, int], Steps] = measure_steps,
    ) -> None:
        if steps < 2:
            raise ConfigError(
                f"calibration_steps must be at least 2, got {steps}; a median needs more than one"
            )
        self.path, self.steps, self.threads, self.measure = path, steps, threads, measure
        self._clocks: dict[str, dict[str, Any]] = {}
        self._memory: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                self._clocks, self._memory = kept["clocks"], kept["memory"]
                [Clock(**found["clock"]) for found in self._clocks.values()]
                [int(found["bytes"]) for found in self._memory.values()]
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ConfigError(f"{path} is damaged; delete it to measure anew") from None

    def clocks(self, recipes: Sequence[Recipe], baseline: Recipe) -> list[Clock]:
        """Time each recipe against the baseline.

        Those not known yet are measured in rounds, and the baseline with them in each: so that a machine that slows
        down does it to all alike, and an entry that joins later is compared with the baseline of its own hour.
        """
        keys = [self._key(recipe, baseline) for recipe in recipes]
        new = {key: recipe for key, recipe in zip(keys, recipes, strict=True) if key not in self._clocks}
        if new:
            own = self._key(baseline, baseline)
            rounds = self._rounds({own: baseline} | new)
            for key, recipe in new.items():
                clock = _clock([seconds[key] for seconds in rounds], [seconds[own] for seconds in rounds])
                self._clocks[key] = {"of": recipe.name, "threads": self.threads, "clock": asdict(clock)}
            self._save()
        return [Clock(**self._clocks[key]["clock"]) for key in keys]

    def peak_memory(self, recipe: Recipe) -> int:
        """Bytes at the peak of a few training steps."""
        key = self._key(recipe)
        if key not in self._memory:
            self._memory[key] = {"of": recipe.name, "bytes": self._measured(recipe).peak_memory_bytes}
            self._save()
        return int(self._memory[key]["bytes"])

    def _rounds(self, recipes: dict[str, Recipe]) -> list[dict[str, float]]:
        """Median seconds of a step in each round, by key; every other round goes backwards, against a steady drift."""
        rounds: list[dict[str, float]] = []
        with tqdm(total=ROUNDS * len(recipes), desc="timing steps", unit="model", delay=2.0) as bar:
            for number in range(ROUNDS):
                rounds.append({})
                for key in reversed(recipes) if number % 2 else recipes:
                    rounds[-1][key] = statistics.median(self._measured(recipes[key]).seconds)
                    bar.update()
        return rounds

    def _measured(self, recipe: Recipe) -> Steps:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(self.threads or before)
            return self.measure(recipe, self.steps)
        finally:
            torch.set_num_threads(before)

    def _key(self, *recipes: Recipe) -> str:
        asked = [*map(_what_matters, recipes), self.steps]
        return hashlib.sha256(to_json(asked).encode()).hexdigest()

    def _save(self) -> None:
        if self.path is not None:
            write_json(self.path, {"clocks": self._clocks, "memory": self._memory})


def _clock(own: list[float], baseline: list[float]) -> Clock:
    shares = [b / o for b, o in zip(baseline, own, strict=True)]
    seconds, share = statistics.median(own), statistics.median(shares)
    return Clock(seconds, seconds * share, (max(shares) - min(shares)) / 2 / share)


def _what_matters(recipe: Recipe) -> dict[str, Any]:
    values = to_dict(recipe)
    for part, keys in _NO_MATTER.items():
        for key in keys:
            del (values[part] if part else values)[key]
    return values
