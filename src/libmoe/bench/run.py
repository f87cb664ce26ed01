"""Run a grid cell by cell, on this machine or on a cluster, and write its results as they come.

Cells that are done are never run again: the same command after a kill goes on where it stopped, and a method that
is added later to the same folder is the only one that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from libmoe.bench.budgets import Calibrator
from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.checks import refuse_measuring_elsewhere, refuse_wrong_recipes
from libmoe.bench.claim import claim, held, join
from libmoe.bench.executors import Executor, LocalPool
from libmoe.bench.executors.base import Say
from libmoe.bench.grid import Grid
from libmoe.bench.looks import Looks, look_by_look
from libmoe.bench.match import Matched, match_sizes, read_sizes, write_sizes
from libmoe.bench.origin import origin_of
from libmoe.bench.prepare import prepare
from libmoe.bench.protocol import describe_protocol, describe_sizes
from libmoe.bench.recording import Recorder
from libmoe.bench.results import Results, Row
from libmoe.bench.specs import finished_rows, run_specs
from libmoe.bench.tuning.search import Tuned
from libmoe.bench.tuning.tuner import tune
from libmoe.core.errors import LibMoEError
from libmoe.train.provenance import command_line, gather, record

__all__ = ["run_grid", "run_specs"]


def run_grid(
    grid: Grid,
    out: str | Path,
    *,
    plugins: Sequence[str | Path] = (),
    executor: Executor | None = None,
    store: str | Path | None = None,
    say: Say = print,
    live: bool = True,
) -> list[CellSpec]:
    """Train and evaluate every method with every seed, and write ``results.json``.

    With ``grid.tuning`` the settings of every entry are chosen first; with ``grid.until`` seeds are added look by look
    to the methods that are not decided yet.

    Args:
        out: grid folder; one subfolder per cell.  Cells of the same comparison that it holds already are kept.
        plugins: Python files that register further methods; workers load them too.
        executor: where cells run; by default on this machine, ``grid.workers`` at once.
        store: file of the results store in which evaluations of finished cells are recorded; ``None`` for none.
        say: where one-line messages go.
        live: show a table that refreshes while cells run.

    Returns:
        Cells that the executor has handed over to another system and that are not over: give the same command again
        when they are.  Otherwise none.

    Raises:
        ConfigError: something is wrong with the grid, the folder holds another comparison, or a recipe, plugin or
            checkpoint has changed since its cells were trained.  Nothing has been run then; the folder is as it was.
        DataError: the corpus or the results store cannot be read.
        LibMoEError: every cell failed.
    """
    folder, files = Path(out), [str(Path(p).resolve()) for p in plugins]
    executor = executor or LocalPool(grid.workers)
    left: list[CellSpec] = []
    with held(folder):
        whole = join(folder, grid)
        recorder = Recorder(folder, store, say)
        rivals = [key for key in whole["entries"] if key != grid.baseline]
        looks = None if grid.until is None else Looks.read(folder, grid.until, rivals)
        refuse_wrong_recipes(grid)
        refuse_measuring_elsewhere(grid, executor)


        def train_first(cells: Sequence[CellSpec]) -> dict[str, Row]:
            if finished_rows(cells).keys() != {spec.run_dir for spec in cells}:
                claim(folder, whole)  # logs will lie there
            rows = run_specs(cells, folder, executor, say=say, live=live)
            left.extend(spec for spec in cells if spec.run_dir not in rows)
            return rows

        stages = prepare(grid.prepare, files, executor.threads, train_first)
        if left:
            return left
        sizes = _sizes(grid, folder, executor.threads, say)
        protocol = describe_protocol(grid, sizes) | {"stages": stages}

        def begin() -> None:
            claim(folder, whole)
            write_sizes(folder, grid, sizes)

        def trial(cells: Sequence[CellSpec]) -> dict[str, Row]:
            begin()
            rows = run_specs(cells, folder, executor, say=say, live=live)
            left.extend(spec for spec in cells if spec.run_dir not in rows)
            return rows

        tuned = tune(grid, sizes, folder, trial, say, plugins=files, threads=executor.threads)
        if left:
            return left
        specs = _cells(grid, folder, sizes, tuned, files, executor.threads)
        over = finished_rows(specs.values())
        begin()
        fingerprints = {protocol["data"]: protocol["data_fingerprint"]}
        record(folder, gather(command=command_line(), recipe=whole, plugins=files, data=fingerprints))
        results = Results.read(folder, whole, protocol)
        results.forget(specs.values())
        over |= {
            spec.run_dir: failed_row(spec, error)
            for spec in specs.values()
            if spec.key in tuned and (error := tuned[spec.key].error) is not None
        }

        def heard(rows: Sequence[Row]) -> None:
            results.add(rows)
            recorder.add(rows)

        def run(cells: Sequence[CellSpec]) -> bool:
            rows = run_specs(cells, folder, executor, over=over, heard=heard, say=say, live=live)
            failed = [row for row in rows.values() if row["status"] != "ok"]
            if len(failed) == len(cells):
                raise LibMoEError(f"every cell failed; the first says: {failed[0]['error']}")
            over.update(rows)  # one that has failed is not tried again by this command
            left.extend(spec for spec in cells if spec.run_dir not in rows)
            return not left

        if looks is None:
            run([*specs.values()])
        else:
            look_by_look(grid, looks, specs, run, results, say)
    return left


def _sizes(grid: Grid, folder: Path, threads: int, say: Say) -> dict[str, Matched]:
    say(f"Sizes, matched on {grid.match.replace('_', ' ')} of {grid.baseline!r}:")
    measured = Calibrator(folder / "calibration.json", grid.calibration_steps, threads)
    sizes = match_sizes(grid, measured, read_sizes(folder, grid))
    for line in describe_sizes(sizes):
        say(f"  {line}")
    return sizes


def _cells(
    grid: Grid,
    folder: Path,
    sizes: Mapping[str, Matched],
    tuned: Mapping[str, Tuned],
    plugins: Sequence[str],
    threads: int,
) -> dict[tuple[str, int], CellSpec]:
    """By key and seed; seed by seed, so that a first comparison of all methods is there early."""
    cells = {}
    for seed in grid.seeds:
        for entry in grid.entries:
            recipe, choice = sizes[entry.key].recipe(grid, entry, seed), tuned.get(entry.key)
            cells[entry.key, seed] = CellSpec(
                key=entry.key,
                label=entry.label,
                recipe=recipe if choice is None else choice.apply(recipe),
                run_dir=str(folder / f"{entry.key}-s{seed}"),
                plugins=tuple(plugins),
                threads=threads,
                origin=origin_of(recipe),
                command=command_line(),
                tuning=None if choice is None else choice.row,
            )
    return cells
