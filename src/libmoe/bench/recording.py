"""Evaluations of finished cells into the results store, so that `libmoe results` finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.eval.results import Results
from libmoe.eval.results.facts import find_evaluation, read_evaluation
from libmoe.train.recipe import load_recipe


class Recorder:
    """Records each cell's evaluation once; cells that were evaluated on no task of the harness have none.

    Args:
        folder: of the grid.
        store: the store's file; ``None`` records nothing.
        say: told of what could not be recorded: the store is an index that can be made again.

    Raises:
        ConfigError, DataError: the file is no results store, or one of another format.
    """

    def __init__(self, folder: Path, store: str | Path | None, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.store = Results(store) if store is not None else None
        self.known: dict[str, str] = {}
        if self.store is not None and self.store.path.is_file():
            self.known = {row["folder"]: row["time"] for row in self.store.query(None, ["folder", "time"])}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Record what cells with these rows of ``results.json`` left, if it is not in the store as it is."""
        for row in rows:
            cell = self.folder / f"{row['method']}-s{row['seed']}"
            if self.store is None or row["status"] != "ok" or not row["tasks"] or _asks_itself(cell):
                continue
            try:
                place = find_evaluation(cell)
                time = read_evaluation(place).get("when", "")
                if self.known.get(str(place)) != time:
                    self.store.add(place)
                    self.known[str(place)] = time
            except DataError as error:
                self.say(f"{cell.name} is not in the results store: {error}")


def _asks_itself(cell: Path) -> bool:
    """Whether the cell's tasks are questions of its own conversations, which no harness evaluates."""
    recipe = cell / "recipe.yaml"
    return recipe.is_file() and load_recipe(recipe).data.conversations is not None
