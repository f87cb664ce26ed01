"""Run a grid on a local pool of processes, cell by cell, and write its results as they come.

Cells that are done are never run again: the same command after a kill goes on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec, finished_row, run_cell
from libmoe.bench.grid import Grid
from libmoe.bench.live import LiveTable
from libmoe.bench.match import Matched, match_sizes
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import write_json

Say = Callable[[str], None]


def run_grid(
    grid: Grid, out: str | Path, *, plugins: Sequence[str] = (), say: Say = print, live: bool = True
) -> Path:
    """Train and evaluate every method with every seed; returns the folder with ``results.json``.

    Args:
        out: grid folder; one subfolder per cell.
        plugins: Python files that register further methods; workers load them too.
        say: where one-line messages go.
        live: show a table that refreshes while cells run.

    Raises:
        ConfigError: the folder holds another grid.
        LibMoEError: every cell failed.
    """
    folder = Path(out)
    _claim(folder, grid)
    say(f"Sizes, matched on {grid.match.replace('_', ' ')} of {grid.baseline!r}:")
    sizes = match_sizes(grid)
    for line in describe_sizes(sizes):
        say(f"  {line}")
    protocol = describe_protocol(grid, sizes)
    workers = max(1, min(grid.workers, os.cpu_count() or 1))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Seed by seed, so that a first comparison of all methods is there early.
    specs = [
        CellSpec(
            key=entry.key,
            label=entry.label,
            recipe=grid.cell_recipe(entry, seed, sizes[entry.key].options),
            run_dir=str(folder / f"{entry.key}-s{seed}"),
            plugins=tuple(str(Path(p).resolve()) for p in plugins),
            threads=threads,
        )
        for seed in grid.seeds
        for entry in grid.entries
    ]
    rows = {spec.run_dir: row for spec in specs if (row := finished_row(spec)) is not None}
    if rows:
        say(f"{len(rows)} of {len(specs)} cells are done already and are kept.")

    def keep(spec: CellSpec, row: dict[str, Any]) -> None:
        rows[spec.run_dir] = row
        ordered = [rows[s.run_dir] for s in specs if s.run_dir in rows]
        write_json(folder / "results.json", {"protocol": protocol, "rows": ordered})

    for spec in specs:
        if spec.run_dir in rows:
            keep(spec, rows[spec.run_dir])
    todo = [spec for spec in specs if spec.run_dir not in rows]
    with LiveTable(specs, rows, enabled=live, say=say) as table:
        _run_pool(todo, workers, keep, table)
    failed = [row for row in rows.values() if row["status"] != "ok"]
    for row in failed:
        say(f"{row['method']} seed {row['seed']} failed: {row['error']}")
    if len(failed) == len(specs):
        raise LibMoEError(f"every cell failed; the first says: {failed[0]['error']}")
    return folder


def _claim(folder: Path, grid: Grid) -> None:
    """Make the folder this grid's own, or say that it belongs to another."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, mine = folder / "grid.json", to_dict(grid) | {"workers": 0}
    if mark.exists():
        import json

        theirs = json.loads(mark.read_text(encoding="utf-8"))
        for key in mine:
            if theirs.get(key) != mine[key]:
                raise ConfigError(
                    f"{folder} holds another comparison ({key!r} differs); choose another --out or delete the folder"
                )
    else:
        write_json(mark, mine)


def _run_pool(
    specs: list[CellSpec], workers: int, keep: Callable[[CellSpec, dict[str, Any]], None], table: LiveTable
) -> None:
    attempts: dict[str, int] = {}
    while specs:
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        running: dict[Future, CellSpec] = {}
        waiting = list(specs)
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    spec = waiting.pop(0)
                    running[pool.submit(run_cell, spec)] = spec
                    table.started(spec)
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    spec = running[future]
                    row = future.result()
                    del running[future]
                    specs.remove(spec)
                    keep(spec, row)
                    table.finished(spec, row)
                table.refresh()
        except BrokenProcessPool:
            # A worker died (out of memory, killed).  Its cell resumes from its checkpoint, once.
            for spec in running.values():
                attempts[spec.run_dir] = attempts.get(spec.run_dir, 0) + 1
                if attempts[spec.run_dir] > 1:
                    specs.remove(spec)
                    row = {
                        "method": spec.key, "label": spec.label, "seed": spec.recipe.seed, "status": "failed",
                        "error": "its process was killed twice (out of memory?); lower the batch size or the workers",
                    }  # fmt: skip
                    keep(spec, row)
                    table.finished(spec, row)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        pool.shutdown()


def describe_sizes(sizes: dict[str, Matched]) -> list[str]:
    lines = []
    for key, matched in sizes.items():
        cost = matched.cost
        residual = "" if matched.residual is None else f"  off target {matched.residual:+.2%}"
        lines.append(f"{key:<18} active {cost.active_params:>11,}  total {cost.total_params:>11,}{residual}")
    return lines


def describe_protocol(grid: Grid, sizes: dict[str, Matched]) -> dict[str, Any]:
    """What the report says about how the comparison was made."""
    import torch
    import transformers

    import libmoe
    from libmoe.eval import corpus_facts

    recipe = grid.recipe
    return {
        "name": grid.name,
        "budget": f"{grid.match} equal to {grid.baseline}",
        "baseline": grid.baseline,
        "seeds": grid.seeds,
        "steps": recipe.train.steps,
        "tokens": recipe.train.steps * recipe.train.batch_size * recipe.data.seq_len,
        "seq_len": recipe.data.seq_len,
        "batch_size": recipe.train.batch_size,
        "backbone": to_dict(recipe.backbone),
        "mismatch": {key: m.residual for key, m in sizes.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "libmoe": libmoe.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **corpus_facts(recipe),
    }
