"""Run a run again from its recipe, and say whether its numbers come out again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors import LocalPool, Resources
from libmoe.bench.live import LiveTable
from libmoe.bench.origin import origin_of
from libmoe.bench.side_by_side import (
    VERDICTS,
    Quantity,
    Verdict,
    compare,
    differences,
    metrics,
    not_compared,
    same_weights,
    training_differences,
)
from libmoe.core.errors import ConfigError, DataError, TrainingError
from libmoe.core.files import read_json, write_json
from libmoe.core.plugins import load_plugin
from libmoe.train import provenance
from libmoe.train.recipe import Recipe, load_recipe

TOLERANCE = 1e-3
"""Largest relative difference of a loss or score that counts as the same on another machine."""


@dataclass(frozen=True)
class Reproduction:
    """What came of running a run again.

    Attributes:
        verdict: the worst of all quantities.
        steps: training steps that were compared; ``whole`` if that is all of them, scores included.
        same_weights: whether the final weights are equal to the last bit; ``None`` if they were not compared.
        not_compared: what else there might have been to compare, and why it was not, a line each.
        environment: what differs between then and now, a line each.
        folder: where the new run is, if it was kept.
    """

    run: str
    verdict: Verdict
    steps: int
    whole: bool
    tolerance: float
    quantities: list[Quantity]
    same_weights: bool | None
    not_compared: list[str]
    environment: list[str]
    folder: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _EnoughError(Exception):
    """The steps that were asked for are done."""


def reproduce(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    plugins: Sequence[str | Path] | None = None,
    say: Callable[[str], None] = print,
    live: bool = True,
) -> Reproduction:
    """Run ``run_dir`` again in a fresh folder, with the same recipe and threads, and compare losses and scores.

    Args:
        out: where to; must not exist.  ``None`` uses a temporary folder.  If kept, it gets ``reproduction.json``.
        steps: compare only the losses up to this step, and stop there; the schedule stays that of the whole run.
        tolerance: largest relative difference of losses and scores; accuracies of tasks may also differ by one item.
        plugins: files that register the method, if they are not where they were.

    Raises:
        ConfigError: no run folder, an impossible argument, or a plugin is gone.
        DataError: the run has no losses to compare with.
        TrainingError: the run fails when it is repeated.
    """
    run = Path(run_dir)
    _check(run, out, steps, tolerance)
    then = provenance.read(run) or {}
    noted = [plugin["path"] for plugin in then.get("plugins", ())]
    files = [str(Path(p).resolve()) for p in (noted if plugins is None else plugins)]
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"the plugin {file} of {run} is gone; say where it is now with --plugin")
        load_plugin(file)
    recipe = load_recipe(run / "recipe.yaml")
    logged = metrics(run)
    if not logged:
        raise DataError(f"{run} has logged no loss, so there is nothing to compare with; train it first")
    asked = min(steps or recipe.train.steps, max(logged))
    # Losses are logged every few steps: up to the first line that covers what was asked for.
    last = min(step for step in logged if step >= asked)
    whole = last == recipe.train.steps and (run / "result.json").exists()
    with _folder(out, run.name) as fresh:
        row = _run_again(_spec(run, fresh, recipe, files, then), last, whole, say, live)
        if row is not None and row["status"] != "ok":
            where = "" if out is not None else "; --out NEW keeps the folder with the details"
            raise TrainingError(
                f"the run fails when it is repeated: {row['error'].partition(' (details:')[0]}{where}"
            )
        quantities = compare(run, fresh, last, whole, tolerance)
        weights = same_weights(run, fresh) if whole else None
        found = Reproduction(
            run=str(run),
            verdict=max((q.verdict for q in quantities), key=VERDICTS.index),
            steps=last,
            whole=whole,
            tolerance=tolerance,
            quantities=quantities,
            same_weights=weights,
            not_compared=not_compared(run, last, whole, weights),
            environment=_environment(run, fresh, then),
            folder=str(fresh) if out is not None else None,
        )
        if out is not None:
            write_json(fresh / "reproduction.json", found.to_dict())
    return found


def _check(run: Path, out: str | Path | None, steps: int | None, tolerance: float) -> None:
    if (run / "grid.json").exists():
        cells = sorted(p.parent.name for p in run.glob("*/recipe.yaml"))
        example = f", for example {run / cells[0]}" if cells else ""
        raise ConfigError(f"{run} holds a comparison; name one of its runs{example}")
    if not (run / "recipe.yaml").is_file():
        raise ConfigError(
            f"{run} is no run folder: recipe.yaml is missing; name the folder that training wrote"
        )
    if out is not None and Path(out).exists():
        raise ConfigError(f"{out} exists; choose a new folder for --out")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must be 0 or greater, got {tolerance}")


def _spec(run: Path, fresh: Path, recipe: Recipe, plugins: list[str], then: Mapping[str, Any]) -> CellSpec:
    threads = then.get("torch", {}).get("threads") or (read_json(run / "env.json") or {}).get("threads") or 1
    return CellSpec(
        key=recipe.method.name,
        label=recipe.method.name,
        recipe=recipe,
        run_dir=str(fresh),
        plugins=tuple(plugins),
        threads=threads,
        origin=origin_of(recipe),
        command=provenance.command_line(),
    )


@contextmanager
def _folder(out: str | Path | None, name: str) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="libmoe-reproduce-") as temporary:
        yield Path(temporary) / name


def _run_again(
    spec: CellSpec, last: int, whole: bool, say: Callable[[str], None], live: bool
) -> dict[str, Any] | None:
    """In a worker process, as a cell of a grid; part of a run is ended when its step ``last`` is logged."""
    rows: list[dict[str, Any]] = []
    executor = LocalPool(1, Resources(cpus=spec.threads))
    with LiveTable([spec], {}, enabled=live, say=lambda line: None) as table:

        def finished(spec: CellSpec, row: dict[str, Any]) -> None:
            rows.append(row)
            table.finished(spec, row)

        def tick() -> None:
            table.refresh()
            if not whole and executor.metrics(spec).get("step", 0) >= last:
                raise _EnoughError

        say(f"Running it again to step {last} of {spec.recipe.train.steps}, with {spec.threads} threads.")
        try:
            executor.run([spec], Path(spec.run_dir), started=table.started, finished=finished, tick=tick)
        except _EnoughError:
            return None
    return rows[0]


def _environment(run: Path, fresh: Path, then: Mapping[str, Any]) -> list[str]:
    more = training_differences(run, fresh)
    if not then:
        return [
            "the run has no provenance.json that can be read: little is known of where it was made",
            *more,
        ]
    beyond = ("device", "processes", "parallel")  # what provenance does not hold
    now = provenance.read(fresh) or {}
    return [*differences(then, now), *(line for line in more if line.startswith(beyond))]
