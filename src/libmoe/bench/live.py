"""A table of running cells, read from their metrics files: works for any number of processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from libmoe.bench.cell import CellSpec


def last_metrics(run_dir: str | Path) -> dict[str, Any]:
    """Last whole line of a run's ``metrics.jsonl``, or an empty dictionary."""
    try:
        with (Path(run_dir) / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else {}
    except (OSError, json.JSONDecodeError):
        return {}


class LiveTable:
    """Shows each cell's state, step, loss, held-out bits per byte and the time left for the grid.

    Away from a terminal it prints one line per finished cell instead.
    """

    def __init__(
        self,
        specs: Sequence[CellSpec],
        rows: dict[str, dict[str, Any]],
        *,
        enabled: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.specs, self.say = list(specs), say
        self.console = Console(stderr=True)
        self.live = (
            Live(console=self.console, refresh_per_second=2) if enabled and sys.stderr.isatty() else None
        )
        self.rows = dict(rows)
        self.kept = len(rows)
        self.begun: dict[str, float] = {}
        self.start = time.monotonic()

    def __enter__(self) -> LiveTable:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self.refresh()
            self.live.stop()

    def started(self, spec: CellSpec) -> None:
        self.begun[spec.run_dir] = time.monotonic()

    def finished(self, spec: CellSpec, row: dict[str, Any]) -> None:
        self.rows[spec.run_dir] = row
        if self.live is None:
            seconds = time.monotonic() - self.begun.get(spec.run_dir, self.start)
            result = (
                f"{row['bits_per_byte']:.4f} bits/byte"
                if row["status"] == "ok"
                else f"failed: {row['error']}"
            )
            count = f"[{len(self.rows)}/{len(self.specs)}]"
            self.say(f"{count} {spec.key} seed {spec.recipe.seed}: {result} ({seconds:.0f} s){self._left()}")

    def _left(self) -> str:
        done = len(self.rows) - self.kept
        if not done or len(self.rows) == len(self.specs):
            return ""
        left = (time.monotonic() - self.start) / done * (len(self.specs) - len(self.rows))
        return f", about {left / 60:.1f} min left" if left >= 60 else f", about {left:.0f} s left"

    def refresh(self) -> None:
        if self.live is not None:
            self.live.update(self._render())

    def _render(self) -> Table:
        table = Table(
            title=f"{len(self.rows)} of {len(self.specs)} cells done{self._left()}", title_justify="left"
        )
        for column in ("method", "seed", "state", "step", "loss", "bits/byte", "tokens/s"):
            table.add_column(column, justify="left" if column in ("method", "state") else "right")
        for spec in self.specs:
            row, steps = self.rows.get(spec.run_dir), spec.recipe.train.steps
            if row is not None and row["status"] == "ok":
                cells = (
                    "[green]done",
                    f"{steps}",
                    "",
                    f"{row['bits_per_byte']:.4f}",
                    f"{row['tokens_per_second']:,.0f}",
                )
            elif row is not None:
                cells = ("[red]failed", "", "", "", "")
            elif spec.run_dir in self.begun:
                metrics = last_metrics(spec.run_dir)
                step = metrics.get("step", 0)
                state = "training" if step < steps else "evaluating"
                loss = f"{metrics['loss']:.3f}" if "loss" in metrics else ""
                cells = (f"[yellow]{state}", f"{step}/{steps}", loss, "", "")
            else:
                cells = ("[dim]waiting", "", "", "", "")
            table.add_row(spec.key, str(spec.recipe.seed), *cells)
        return table
