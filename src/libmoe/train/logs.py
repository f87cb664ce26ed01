"""The logs of a run: its two JSON-lines files and the trackers, written by the main process alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from libmoe.train.files import disk_errors
from libmoe.train.memory import PeakMemory
from libmoe.train.metrics import JsonLines
from libmoe.train.parallel import World
from libmoe.train.recipe import Recipe
from libmoe.train.state import RunState
from libmoe.train.trackers import Tracker, flatten, open_trackers

LOST = "nothing written is lost; free some space and run the same command again to resume"


class Logs:
    """``metrics.jsonl`` (the same for the same recipe), ``timing.jsonl`` (wall clock) and trackers.

    Args:
        state: where the run goes on: step, tokens, seconds, and the lengths of the two files.
        world: only the main rank writes.
    """

    def __init__(self, folder: Path, recipe: Recipe, state: RunState, world: World, memory: PeakMemory) -> None:
        self._folder, self._memory = folder, memory
        self._tokens, self._seconds = state.tokens, state.seconds
        self._files: list[JsonLines] = []
        self._trackers: list[Tracker] = []
        if world.is_main:
            self._trackers = open_trackers(recipe.train.trackers, recipe, folder, state.step)
            for name, size in (("metrics", state.metrics_bytes), ("timing", state.timing_bytes)):
                self._files.append(JsonLines(folder / f"{name}.jsonl", size))

    def write(self, record: Mapping[str, Any], seconds: float) -> float:
        """Append one record after ``seconds`` of training; returns the tokens per second since the last one."""
        speed = (record["tokens"] - self._tokens) / max(seconds - self._seconds, 1e-9)
        self._tokens, self._seconds = record["tokens"], seconds
        timing = {
            "step": record["step"],
            "seconds": seconds,
            "tokens_per_second": speed,
            "peak_memory_bytes": self._memory.bytes(),
        }
        with disk_errors(self._folder / "metrics.jsonl", LOST):
            for file, line in zip(self._files, (record, timing)):
                file.write(line)
        for tracker in self._trackers:
            tracker.log(record["step"], flatten(record) | flatten(timing, "timing/"))
        return speed

    def sync(self) -> tuple[int, int]:
        """Bring both files to the disk; their lengths (0 where nothing is written)."""
        sizes = [file.sync() for file in self._files]
        return (sizes[0], sizes[1]) if sizes else (0, 0)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()
        for tracker in self._trackers:
            tracker.close()
