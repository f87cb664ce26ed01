"""The logs of a run: its two JSON-lines files and the trackers, written by the main process alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from libmoe.train.files import disk_errors
from libmoe.train.metrics import JsonLines
from libmoe.train.recipe import Recipe
from libmoe.train.trackers import Tracker, flatten, open_trackers

LOST = "nothing written is lost; free some space and run the same command again to resume"


class Logs:
    """``metrics.jsonl`` (the same for the same recipe), ``timing.jsonl`` (wall clock) and trackers.

    Args:
        offsets: lengths in bytes at which the two files go on.
        step: the step at which the run goes on.
        enabled: ``False`` on ranks that write nothing.
    """

    def __init__(self, folder: Path, recipe: Recipe, offsets: tuple[int, int], step: int, enabled: bool) -> None:
        self._files: Sequence[JsonLines] = ()
        self._trackers: Sequence[Tracker] = ()
        self._folder = folder
        if enabled:
            self._trackers = open_trackers(recipe.train.trackers, recipe, folder, step)
            paths = (folder / "metrics.jsonl", folder / "timing.jsonl")
            self._files = [JsonLines(path, size) for path, size in zip(paths, offsets)]

    def write(self, record: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        with disk_errors(self._folder / "metrics.jsonl", LOST):
            for file, line in zip(self._files, (record, timing)):
                file.write(line)
        for tracker in self._trackers:
            tracker.log(record["step"], flatten(record) | flatten(timing, "timing/"))

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
