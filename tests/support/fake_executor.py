"""An executor that trains nothing: each cell leaves the score that a function gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.executors import Executor
from libmoe.core.files import write_json
from libmoe.train.recipe import save_recipe

DOMAINS, WINDOWS, BYTES = ("novel", "math"), 6, 100
Score = Callable[[str, int], float | None]
"""Bits per byte of a cell, by its key and seed; ``None`` for one that fails."""


class FakeExecutor(Executor):
    """Leaves what a cell leaves: its recipe, its origin, its row and its held-out windows.

    Args:
        score: of each cell.
        stop_after: interrupted, as by Ctrl-C, after so many cells.
        hands_over: keep the cells, as SLURM does, and run them with :meth:`work`.
    """

    threads = 1
    here = True

    def __init__(self, score: Score, stop_after: int | None = None, hands_over: bool = False) -> None:
        self.score, self.stop_after, self.hands_over = score, stop_after, hands_over
        self.ran: list[str] = []
        self.kept: list[CellSpec] = []

    def run(self, specs: Sequence[CellSpec], folder: Path, *, started: Any, finished: Any, tick: Any) -> None:
        if self.hands_over:
            self.kept = list(specs)
            return
        for spec in specs:
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            started(spec)
            finished(spec, self.cell(spec))
            tick()

    def work(self, specs: Iterable[CellSpec]) -> None:
        """What the other system does."""
        for spec in specs:
            self.cell(spec)

    def cell(self, spec: CellSpec) -> dict[str, Any]:
        self.ran.append(Path(spec.run_dir).name)
        bits, folder = self.score(spec.key, spec.recipe.seed), Path(spec.run_dir)
        save_recipe(spec.recipe, folder / "recipe.yaml")
        write_json(spec.origin_file, spec.origin)
        row = failed_row(spec, "planted failure")
        if bits is not None:
            row |= {"status": "ok", "error": None, "tasks": {}, "tokens_per_second": 1.0, **_scores(bits)}
            curve = [{"step": spec.recipe.train.steps, "tokens": 1, "bits_per_byte": bits}]
            held_out = {"windows": _windows(bits), "window_documents": _documents()}
            write_json(folder / "eval.json", held_out | {"curve": curve})
        write_json(spec.row_file, row)
        return row


def _scores(bits: float) -> dict[str, Any]:
    return {
        "bits_per_byte": bits,
        "best_bits_per_byte": bits,
        "domains": dict.fromkeys(DOMAINS, bits),
        "tokens": 1,
        "train_flops": 2.0,
        "train_seconds": 1.0,
    }


def _windows(bits: float) -> dict[str, list[list[float]]]:
    """The same texts for every cell, some harder than others."""
    easier = np.linspace(-0.2, 0.2, WINDOWS)
    return {domain: [[(bits + e) * BYTES, BYTES] for e in easier] for domain in DOMAINS}


def _documents() -> dict[str, list[int]]:
    return {domain: [i // 2 for i in range(WINDOWS)] for domain in DOMAINS}
