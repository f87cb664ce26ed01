"""Run a run again from its recipe, and say whether its numbers come out again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from libmoe.bench import provenance
from libmoe.bench.cell import CellSpec, plugin_digest
from libmoe.bench.executors import LocalPool, Resources
from libmoe.bench.live import LiveTable
from libmoe.core.errors import ConfigError, DataError, TrainingError
from libmoe.core.files import write_json
from libmoe.core.plugins import load_plugin
from libmoe.train.recipe import Recipe, load_recipe

Verdict = Literal["bitwise", "within tolerance", "differs"]
VERDICTS: tuple[Verdict, ...] = ("bitwise", "within tolerance", "differs")
TOLERANCE = 1e-3
"""Largest relative difference of a loss or score that counts as the same on another machine."""

Numbers = dict[str, Any]
"""By place (``step 10``, a domain, a task): a number, or ``None`` for one that was not finite."""


@dataclass(frozen=True)
class Quantity:
    """One kind of number of both runs.

    Attributes:
        numbers: how many were compared.
        largest: the largest relative difference; ``None`` where a number is there in one run only or not finite.
        where: its place.
    """

    name: str
    verdict: Verdict
    numbers: int
    largest: float | None
    where: str


@dataclass(frozen=True)
class Reproduction:
    """What came of running a run again.

    Attributes:
        verdict: the worst of all quantities.
        steps: training steps that were compared; ``whole`` if that is all of them, scores included.
        same_weights: whether the final weights are equal to the last bit; ``None`` if not run to the end.
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
    files = [str(Path(p).resolve()) for p in (plugins if plugins is not None else then.get("plugins", {}))]
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"the plugin {file} of {run} is gone; say where it is now with --plugin")
        load_plugin(file)
    recipe = load_recipe(run / "recipe.yaml")
    logged = _metrics(run)
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
        now = (provenance.read(fresh) or {}) | {"data": {recipe.data.source: provenance.trained_on(fresh)}}
        quantities = _compare(run, fresh, last, whole, tolerance)
        found = Reproduction(
            run=str(run),
            verdict=max((q.verdict for q in quantities), key=VERDICTS.index),
            steps=last,
            whole=whole,
            tolerance=tolerance,
            quantities=quantities,
            same_weights=_weights(run) == _weights(fresh) if whole else None,
            environment=differences(then, now) if then else _from_env(run, fresh),
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
    threads = then.get("torch", {}).get("threads") or _json(run / "env.json").get("threads") or 1
    return CellSpec(
        key=recipe.method.name,
        label=recipe.method.name,
        recipe=recipe,
        run_dir=str(fresh),
        plugins=tuple(plugins),
        threads=threads,
        plugin_digest=plugin_digest(recipe.method.name),
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


def _compare(run: Path, fresh: Path, last: int, whole: bool, tolerance: float) -> list[Quantity]:
    before, now = _metrics(run), _metrics(fresh)
    kinds: dict[str, tuple[Numbers, Numbers]] = {}
    for side, records in enumerate((before, now)):
        for step, record in records.items():
            if step > last:
                continue
            for name, key in (("loss", "loss"), ("auxiliary losses", "losses"), ("validation", "eval")):
                for path, value in _leaves(record.get(key), f"step {step}"):
                    kinds.setdefault(name, ({}, {}))[side][path] = value
    found = [_quantity(name, a, b, tolerance) for name, (a, b) in kinds.items()]
    if whole and (run / "eval.json").exists():
        then, again = _json(run / "eval.json"), _json(fresh / "eval.json")
        for name in ("bits_per_byte", "domains", "best"):
            a, b = (dict(_leaves(side.get(name), name)) for side in (then, again))
            if a or b:
                found.append(_quantity(f"held-out {name}", a, b, tolerance))
        for task in sorted({*then.get("tasks", {}), *again.get("tasks", {})}):
            rows = [side.get("tasks", {}).get(task, {}) for side in (then, again)]
            a, b = ({k: v for k, v in row.items() if not k.endswith("_stderr")} for row in rows)
            found.append(_quantity(f"task {task}", a, b, tolerance, items=a.get("n")))
    return found


def _quantity(
    name: str, before: Numbers, now: Numbers, tolerance: float, items: int | None = None
) -> Quantity:
    verdict: Verdict = "bitwise"
    largest: float | None = 0.0
    where = ""
    for place in [*before, *(p for p in now if p not in before)]:
        a, b = before.get(place), now.get(place)
        if place in before and place in now and a == b:
            continue
        if a is None or b is None:  # in one run only, or not finite there
            verdict, largest, where = "differs", None, place
            break
        relative = abs(a - b) / max(abs(a), abs(b))
        if relative > (largest or 0.0):
            largest, where = relative, place
        same = relative <= tolerance or (items and abs(a - b) <= 1 / items + 1e-12)
        verdict = max(verdict, "within tolerance" if same else "differs", key=VERDICTS.index)
    return Quantity(name, verdict, len({*before, *now}), largest, where)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path} {key}")
    elif value is None or isinstance(value, int | float):
        yield path, value


def _metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Lines of ``metrics.jsonl`` by step; half a line at the end is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return {record["step"]: record for record in map(json.loads, lines) if "loss" in record}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'metrics.jsonl'} is damaged: a line is no record of a step") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _weights(run: Path) -> list[str]:
    """Hashes of the files with the final weights."""
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((run / "model").glob("*.safetensors"))]


def _from_env(run: Path, fresh: Path) -> list[str]:
    """For a run without provenance: what training itself notes of its environment."""
    return [
        "the run has no provenance.json: little is known of where it was made",
        *_unequal("", _json(run / "env.json"), _json(fresh / "env.json")),
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances, a line each: ``hardware.cpu was X, now Y``."""
    found = []
    for key in ("recipe", "data", "plugins", "libmoe", "git", "python", "hardware", "torch", "environment"):
        found += _unequal(key, then.get(key), now.get(key))
    for name, version in then.get("packages", {}).items():
        if (installed := _installed(name)) != version:
            found.append(f"{name} was {version}, now {installed or 'not installed'}")
    if then.get("before"):
        found.append(f"the run was interrupted and went on elsewhere {len(then['before'])} time(s)")
    return found


def _unequal(where: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, Mapping) or isinstance(now, Mapping):
        then, now = then or {}, now or {}
        keys = [*then, *(key for key in now if key not in then)]
        return [
            line
            for key in keys
            for line in _unequal(f"{where}.{key}" if where else str(key), then.get(key), now.get(key))
        ]
    return [] if then == now else [f"{where} was {_short(then)}, now {_short(now)}"]


def _short(value: Any) -> str:
    """Hashes by their beginning."""
    text = "not set" if value is None else str(value)
    return text[:12] if len(text) in (40, 64) and text.isalnum() else text


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
