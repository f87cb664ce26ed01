"""A run as its folder shows it: at work, finished or dead; for pages that are renewed while it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.core.files import is_held, read_json
from libmoe.train.progress import evenness
from libmoe.train.recipe import Recipe, load_recipe

POINTS = 400
"""A curve has at least so many points, once there are, and less than twice as many."""
ALARMS = 50
"""The newest that are kept."""
OF_LAYER = ("entropy", "max_violation", "dead", "margin")


class RunView:
    """Follows the logs of a run; memory does not grow with its length, and each line is read once.

    Raises:
        DataError: the folder is no run.
        ConfigError: its recipe cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / "recipe.yaml"
        if not file.is_file():
            raise DataError(f"{self.folder} is no run folder: recipe.yaml is missing")
        self.recipe: Recipe = load_recipe(file)
        self._begin()

    def _begin(self) -> None:
        self._offset = self._seen = 0
        self._every = 1
        self._points: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}
        self._evaluations: list[list[float]] = []
        self._alarms: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """What there is now, as plain data for JSON.

        ``state`` is ``training``, ``evaluating``, ``finished``, ``failed`` or ``stopped``; ``words`` say what it means.
        ``curves`` hold ``step``, ``loss`` and, by layer, the numbers of :data:`OF_LAYER` at these steps; entropy is
        that of the load over ln N.
        """
        self._read()
        state, words = self._state()
        layers = sorted(self._last.get("balance", {}), key=int)
        curves: dict[str, Any] = {key: [p[key] for p in self._points] for key in ("step", "loss")}
        curves["layers"] = {
            layer: {name: [p["layers"].get(layer, {}).get(name) for p in self._points] for name in OF_LAYER}
            for layer in layers
        }
        return {
            "name": self.folder.resolve().name,
            "method": self.recipe.method.name,
            "state": state,
            "words": words,
            "step": self._last.get("step", 0),
            "steps": self.recipe.train.steps,
            "tokens": self._last.get("tokens", 0),
            "loss": self._last.get("loss"),
            "tokens_per_second": _last_line(self.folder / "timing.jsonl").get("tokens_per_second"),
            "load": {layer: self._last["balance"][layer]["load"] for layer in layers},
            "curves": curves,
            "evaluations": self._evaluations,
            "alarms": self._alarms[::-1],
        }

    def _state(self) -> tuple[str, str]:
        step, steps = self._last.get("step", 0), self.recipe.train.steps
        if is_held(self.folder):
            if step >= steps:
                return "evaluating", "training is done; the run is being finished"
            return "training", f"step {step:,} of {steps:,}"
        if (result := read_json(self.folder / "result.json")) is not None:
            return "finished", f"{result['steps']:,} steps in {result['train_seconds']:,.0f} s of training"
        if any(self.folder.glob("failed-step-*")) and "loss" not in self._last:
            return "failed", f"step {step:,} was not finite; what was kept of it is in the run folder"
        return (
            "stopped",
            f"no process is at work; it ended after step {step:,} of {steps:,}: the same command resumes",
        )

    def _read(self) -> None:
        """Take in the lines that are new; a log that became shorter was cut back by a resumed run: begin anew."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                self._begin()
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # is being written
                self._offset += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        self._last = dict(record)
        step = record.get("step", 0)
        self._alarms = [*self._alarms, *({"step": step, **a} for a in record.get("alarms", []))][-ALARMS:]
        if (value := record.get("eval", {}).get("bits_per_byte")) is not None:
            self._evaluations.append([step, value])
        if "loss" not in record:
            return
        self._seen += 1
        if self._seen % self._every == 0:
            self._points.append(_point(record))
        if len(self._points) >= 2 * POINTS:
            self._points = self._points[1::2]
            self._every *= 2


def _point(record: Mapping[str, Any]) -> dict[str, Any]:
    layers = {
        layer: {name: row.get(name) for name in OF_LAYER} | {"entropy": evenness(row)}
        for layer, row in record.get("balance", {}).items()
    }
    return {"step": record["step"], "loss": record["loss"], "layers": layers}


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().split(b"\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError):
        return {}
