"""``results.json`` of a grid: the protocol and a row for each cell that is over."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.provenance import ran_on
from libmoe.core.files import write_json

FILE = "results.json"
Row = dict[str, Any]
BY_ENTRY = ("mismatch", "steps_by_entry", "tokens_per_param", "clock_spread", "unique_tokens")
"""Parts of the protocol with a value for each entry."""


@dataclass
class Results:
    """Written anew with each row that comes; the order of rows is the grid's, not that of finishing.

    Attributes:
        order: place of each cell in the table.
        rows: by entry and seed.
    """

    path: Path
    protocol: dict[str, Any]
    order: dict[tuple[str, int], int]
    rows: dict[tuple[str, int], Row]

    @classmethod
    def read(cls, folder: Path, whole: Mapping[str, Any], protocol: dict[str, Any]) -> Results:
        """Start from what the folder holds; ``whole`` is its grid, ``protocol`` that of this command."""
        path = folder / FILE
        # Should it be damaged: every finished cell has its row in a file of its own.
        said: dict[str, Any] = {}
        done: dict[tuple[str, int], Row] = {}
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            before = json.loads(path.read_text(encoding="utf-8"))
            said, done = before["protocol"], {(row["method"], row["seed"]): row for row in before["rows"]}
        for name in BY_ENTRY:  # what is known of entries that this command leaves out
            protocol[name] = said.get(name, {}) | protocol[name]
        protocol |= {"seeds": whole["seeds"], "families": whole["families"]}
        cells = [(key, seed) for seed in whole["seeds"] for key in whole["entries"]]
        order = {cell: i for i, cell in enumerate(cells)}
        return cls(path, protocol, order, {cell: row for cell, row in done.items() if cell in order})

    def forget(self, specs: Iterable[CellSpec]) -> None:
        """Drop rows of cells that are about to be run or read again."""
        for spec in specs:
            self.rows.pop((spec.key, spec.recipe.seed), None)

    def add(self, rows: Sequence[Row]) -> None:
        self.rows |= {(row["method"], row["seed"]): row for row in rows}
        ordered = [self.rows[cell] for cell in sorted(self.rows, key=lambda cell: self.order[cell])]
        self.protocol["hardware"] = ran_on(
            self.path.parent / f"{method}-s{seed}" for method, seed in self.rows
        )
        write_json(self.path, {"protocol": self.protocol, "rows": ordered})
