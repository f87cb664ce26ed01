"""Run a grid cell by cell, on this machine or on a cluster, and write its results as they come.

Cells that are done are never run again: the same command after a kill goes on where it stopped, and a method that
is added later to the same folder is the only one that is trained.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.bench.budgets import Calibrator
from libmoe.bench.cell import CellSpec, check_origin, finished_row, plugin_digest
from libmoe.bench.executors import Executor, LocalPool
from libmoe.bench.executors.local import cores
from libmoe.bench.grid import Grid
from libmoe.bench.live import LiveTable
from libmoe.bench.match import Matched, match_sizes
from libmoe.bench.provenance import command_line, gather, record
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import hold, write_json
from libmoe.train.folder import first_difference

Say = Callable[[str], None]


def run_grid(
    grid: Grid,
    out: str | Path,
    *,
    plugins: Sequence[str | Path] = (),
    executor: Executor | None = None,
    say: Say = print,
    live: bool = True,
) -> Path:
    """Train and evaluate every method with every seed; returns the folder with ``results.json``.

    An executor that hands the cells over to another system leaves those out that are not done yet.

    Args:
        out: grid folder; one subfolder per cell.  Cells of the same comparison that it holds already are kept.
        plugins: Python files that register further methods; workers load them too.
        executor: where cells run; by default on this machine, ``grid.workers`` at once.
        say: where one-line messages go.
        live: show a table that refreshes while cells run.

    Raises:
        ConfigError: the folder holds another comparison, or a plugin has changed since its cells were trained.
        LibMoEError: every cell failed.
    """
    folder = Path(out)
    executor = executor or LocalPool(grid.workers)
    with hold(folder):
        whole = _claim(folder, grid)
        say(f"Sizes, matched on {grid.match.replace('_', ' ')} of {grid.baseline!r}:")
        measured = Calibrator(folder / "calibration.json", grid.calibration_steps, executor.threads)
        sizes = match_sizes(grid, measured)
        _refuse_reuse(sizes)
        for line in describe_sizes(sizes):
            say(f"  {line}")
        specs = _cells(grid, folder, sizes, plugins, executor.threads)
        for spec in specs:
            check_origin(spec)
        protocol = describe_protocol(grid, sizes)
        fingerprints = {protocol["data"]: protocol["data_fingerprint"]}
        files = [str(Path(p).resolve()) for p in plugins]
        record(folder, gather(command=command_line(), recipe=whole, plugins=files, data=fingerprints))
        results = Results.read(folder, whole, protocol)
        results.forget(specs)
        rows = {spec.run_dir: row for spec in specs if (row := finished_row(spec)) is not None}
        if rows:
            say(f"{len(rows)} of {len(specs)} cells are done already and are kept.")
        for row in rows.values():
            results.add(row)
        todo = [spec for spec in specs if spec.run_dir not in rows]
        with LiveTable(specs, rows, enabled=live, say=say, metrics=executor.metrics) as table:

            def finished(spec: CellSpec, row: dict[str, Any]) -> None:
                rows[spec.run_dir] = row
                results.add(row)
                table.finished(spec, row)

            executor.run(todo, folder, started=table.started, finished=finished, tick=table.refresh)
    failed = [row for row in rows.values() if row["status"] != "ok"]
    for row in failed if table.live is not None else []:  # without a table each has been said
        say(f"{row['method']} seed {row['seed']} failed: {row['error']}")
    if len(failed) == len(specs):
        raise LibMoEError(f"every cell failed; the first says: {failed[0]['error']}")
    return folder


def _cells(
    grid: Grid, folder: Path, sizes: dict[str, Matched], plugins: Sequence[str | Path], threads: int
) -> list[CellSpec]:
    """Seed by seed, so that a first comparison of all methods is there early."""
    return [
        CellSpec(
            key=entry.key,
            label=entry.label,
            recipe=sizes[entry.key].recipe(grid, entry, seed),
            run_dir=str(folder / f"{entry.key}-s{seed}"),
            plugins=tuple(str(Path(p).resolve()) for p in plugins),
            threads=threads,
            plugin_digest=plugin_digest(entry.method),
            command=command_line(),
        )
        for seed in grid.seeds
        for entry in grid.entries
    ]


def _claim(folder: Path, grid: Grid) -> dict[str, Any]:
    """Make the folder this comparison's own, or join the comparison it holds.

    Returns:
        The grid of the folder: what it held before with the entries and seeds that are new.

    Raises:
        ConfigError: it holds a comparison under another recipe or budget, or another entry of the same name.
    """
    mark, mine = folder / "grid.json", to_dict(grid)
    if (folder / "recipe.yaml").exists():
        raise ConfigError(f"{folder} holds a run, not a comparison; choose another --out")
    for key in ("workers", "resources"):  # where cells run is no part of the comparison
        mine.pop(key, None)
    mine["entries"] = {entry["key"]: entry for entry in mine["entries"]}
    theirs = mine
    if mark.exists():
        try:
            theirs = json.loads(mark.read_text(encoding="utf-8"))
            theirs["entries"].keys(), theirs["seeds"][0]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(f"{mark} is damaged; choose another --out or delete the folder") from None
    shared = {k: v for k, v in mine.items() if k not in ("entries", "seeds")}
    difference = first_difference({k: theirs.get(k) for k in shared}, shared)
    for key in mine["entries"].keys() & theirs["entries"].keys():
        difference = difference or first_difference(
            theirs["entries"][key], mine["entries"][key], f"entry {key}"
        )
    if difference:
        raise ConfigError(
            f"{folder} holds another comparison: {difference}; choose another --out or delete the folder"
        )
    whole = theirs | {
        "entries": theirs["entries"] | mine["entries"],
        "seeds": [*theirs["seeds"], *(s for s in mine["seeds"] if s not in theirs["seeds"])],
    }
    write_json(mark, whole)
    return whole


@dataclass
class Results:
    """``results.json``, written anew with each row; the order of rows is the grid's, not that of finishing."""

    path: Path
    protocol: dict[str, Any]
    order: dict[tuple[str, int], int]
    rows: dict[tuple[str, int], dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, whole: dict[str, Any], protocol: dict[str, Any]) -> Results:
        """Start from what the folder holds; ``whole`` is its grid."""
        path = folder / "results.json"
        cells = [(key, seed) for seed in whole["seeds"] for key in whole["entries"]]
        before: dict[str, Any] = {"protocol": {}, "rows": []}
        # Should it be damaged: every finished cell has its row in a file of its own.
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(path.read_text(encoding="utf-8"))
        protocol["seeds"] = whole["seeds"]
        protocol["mismatch"] = before["protocol"].get("mismatch", {}) | protocol["mismatch"]
        order = {cell: i for i, cell in enumerate(cells)}
        rows = {cell: row for row in before["rows"] if (cell := (row["method"], row["seed"])) in order}
        return cls(path, protocol, order, rows)

    def forget(self, specs: Sequence[CellSpec]) -> None:
        """Drop rows of cells that are about to be run or read again."""
        for spec in specs:
            self.rows.pop((spec.key, spec.recipe.seed), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["method"], row["seed"]] = row
        ordered = [self.rows[cell] for cell in sorted(self.rows, key=lambda cell: self.order[cell])]
        write_json(self.path, {"protocol": self.protocol, "rows": ordered})


def _refuse_reuse(sizes: dict[str, Matched]) -> None:
    """Data that is seen several times is no option of the loader yet: more steps would see new data."""
    for key, matched in sizes.items():
        if matched.unique_tokens is not None:
            raise ConfigError(
                f"entry {key!r}: equal_ncd trains on the same {matched.unique_tokens:,} tokens again and again, which "
                "cannot be run yet; match 'total_params + train_flops' trains longer on new data"
            )


def describe_sizes(sizes: dict[str, Matched]) -> list[str]:
    width = max(map(len, sizes))
    lines = []
    for key, matched in sizes.items():
        cost = matched.cost
        shares = matched.residuals.items()
        off = [f"{name} {share:+.2%}" if len(shares) > 1 else f"{share:+.2%}" for name, share in shares]
        clock = "" if matched.clock_spread is None else f"  clock scatters by {matched.clock_spread:.1%}"
        lines.append(
            f"{key:<{width}}  active {cost.active_params:>11,}  total {cost.total_params:>11,}  "
            f"{matched.steps:,} steps{'  off target ' + ', '.join(off) if off else ''}{clock}"
        )
    return lines


def describe_protocol(grid: Grid, sizes: dict[str, Matched]) -> dict[str, Any]:
    """What the report says about how the comparison was made."""
    import torch
    import transformers

    import libmoe
    from libmoe.data.tasks import CHANCE, TASKS
    from libmoe.eval import corpus_facts

    recipe = grid.recipe
    return {
        "name": grid.name,
        "budget": f"{grid.match} equal to {grid.baseline}" if grid.match != "none" else "sizes as given",
        "steps_by_entry": {key: m.steps for key, m in sizes.items()},
        "tokens_per_param": {key: m.tokens_per_param for key, m in sizes.items()},
        "baseline": grid.baseline,
        "seeds": grid.seeds,
        "steps": recipe.train.steps,
        "tokens": recipe.train.steps * recipe.train.batch_size * recipe.data.seq_len,
        "seq_len": recipe.data.seq_len,
        "batch_size": recipe.train.batch_size,
        "backbone": to_dict(recipe.backbone),
        "task_chance": {task: CHANCE for task in recipe.eval.tasks if task in TASKS},
        "mismatch": {key: m.residual for key, m in sizes.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "hardware": f"{platform.processor() or platform.machine()}, {cores()} cores, {platform.system()}",
        "versions": {
            "libmoe": libmoe.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **corpus_facts(recipe),
    }
