"""A table of running cells, read from their metrics: works for any number of processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from libmoe.bench.cell import CellSpec

MARGIN = 5
"""Lines of the terminal that the table leaves to its head, its foot and the prompt."""


def last_metrics(run_dir: str | Path) -> dict[str, Any]:
    """Last whole line of a run's ``metrics.jsonl``, or an empty dictionary."""
    try:
        with (Path(run_dir) / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


class LiveTable:
    """Shows each cell's state, step, loss, held-out bits per byte and the time left for the grid.

    Away from a terminal, or with ``enabled=False``, it prints one line per finished cell instead.

    Args:
        rows: rows of the cells that were done before, by run folder.
        say: where the lines go.
        console: where the table goes; standard error by default.
        metrics: gives the newest metrics of a cell at work.
    """

    def __init__(
        self,
        specs: Sequence[CellSpec],
        rows: dict[str, dict[str, Any]],
        *,
        enabled: bool = True,
        say: Callable[[str], None] = print,
        console: Console | None = None,
        metrics: Callable[[CellSpec], dict[str, Any]] = lambda spec: last_metrics(spec.run_dir),
    ) -> None:
        self.specs, self.say, self.metrics = list(specs), say, metrics
        self.console = console or Console(stderr=True, highlight=False)
        live = enabled and (console is not None or sys.stderr.isatty())
        self.live = Live(console=self.console, auto_refresh=False) if live else None
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
        self.begun.setdefault(spec.run_dir, time.monotonic())

    def finished(self, spec: CellSpec, row: dict[str, Any]) -> None:
        self.rows[spec.run_dir] = row
        if self.live is None:
            seconds = time.monotonic() - self.begun.get(spec.run_dir, self.start)
            result = _bits(row) + " bits/byte" if row["status"] == "ok" else f"failed: {row['error']}"
            self.say(
                f"[{len(self.rows)}/{len(self.specs)}] {spec.name}: {result} ({_duration(seconds)}){self._left()}"
            )

    def refresh(self) -> None:
        if self.live is not None:
            self.live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """The table, cut to the height of the terminal: cells at work first, then the newest results."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("method", "seed", "state", "step", "loss", "bits/byte", "tokens/s"):
            left = column in ("method", "state")
            table.add_column(column, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
        shown = self._shown(self.console.height - MARGIN)
        for spec in shown:
            table.add_row(spec.key, str(spec.recipe.seed), *self._cells(spec))
        hidden = len(self.specs) - len(shown)
        more = [Text(f"and {hidden} more", style="dim")] if hidden else []
        return Group(Text(f"{len(self.rows)} of {len(self.specs)} cells done{self._left()}"), table, *more)

    def _shown(self, room: int) -> list[CellSpec]:
        if len(self.specs) <= room:
            return self.specs
        order = {run_dir: place for place, run_dir in enumerate(self.rows)}

        def urgency(spec: CellSpec) -> tuple[int, int]:
            row = self.rows.get(spec.run_dir)
            if row is not None:
                return (0 if row["status"] != "ok" else 2, -order[spec.run_dir])
            return (1 if spec.run_dir in self.begun else 3, 0)

        chosen = {spec.run_dir for spec in sorted(self.specs, key=urgency)[: max(room, 1)]}
        return [spec for spec in self.specs if spec.run_dir in chosen]

    def _cells(self, spec: CellSpec) -> tuple[str, ...]:
        """State, step, loss, bits per byte and speed."""
        row, steps = self.rows.get(spec.run_dir), spec.recipe.train.steps
        if row is not None and row["status"] == "ok":
            return ("[green]done", f"{steps}", "", _bits(row), f"{row['tokens_per_second'] or 0:,.0f}")
        if row is not None:
            return ("[red]failed", "", "", "", "")
        if spec.run_dir not in self.begun:
            return ("[dim]waiting", "", "", "", "")
        metrics = self.metrics(spec)
        step = metrics.get("step", 0)
        loss = f"{metrics['loss']:.3f}" if metrics.get("loss") is not None else ""
        return (f"[yellow]{'training' if step < steps else 'evaluating'}", f"{step}/{steps}", loss, "", "")

    def _left(self) -> str:
        done = len(self.rows) - self.kept
        if not done or len(self.rows) == len(self.specs):
            return ""
        left = (time.monotonic() - self.start) / done * (len(self.specs) - len(self.rows))
        return f", about {_duration(left)} left"


def _bits(row: dict[str, Any]) -> str:
    return "not finite" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
