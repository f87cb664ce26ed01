"""Read a finished grid folder: ``results.json`` and, per run, ``metrics.jsonl`` and ``eval.json``.

``results.json`` must be there and well formed; everything else may be missing or damaged, and then leaves a
note that the report shows instead of the picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.report.values import number

COSTS = (
    "active_params",
    "total_params",
    "flops_per_token",
    "train_flops",
    "tokens",
    "tokens_per_second",
    "peak_memory_bytes",
    "train_seconds",
    "steps",
    "inference_tokens_per_second",
)
"""Cost fields of a row; each may be missing."""


@dataclass(frozen=True)
class Row:
    """One run of the grid, as its line in ``results.json`` tells it."""

    method: str
    label: str
    kind: str
    paper: int | None
    seed: int
    ok: bool
    error: str
    causal: bool
    bits_per_byte: float | None
    best_bits_per_byte: float | None
    costs: dict[str, float]
    domains: dict[str, float]
    tasks: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    tuning: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run left in its own folder; each part may be empty."""

    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Grid:
    """A grid folder in memory.  ``notes`` says, in words, what was missing; ``runs`` has failed ones too."""

    folder: Path
    protocol: dict[str, Any]
    rows: list[Row]
    runs: dict[tuple[str, int], Run]
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.ok]

    @property
    def ranked(self) -> list[Row]:
        """Finished runs of methods that see no future tokens."""
        return [row for row in self.finished if row.causal]


def read_grid(grid_dir: Path) -> Grid:
    """Read ``grid_dir``.

    Raises:
        DataError: ``results.json`` is missing, is not JSON, or a field of a row has an impossible value.
    """
    path = Path(grid_dir) / "results.json"
    if not path.is_file():
        raise DataError(f"no results.json in {str(grid_dir)!r}; point at the folder of a finished grid")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise DataError(f"{path}: field 'rows' must be a list with at least one run")
    protocol = content.get("protocol") or {}
    if not isinstance(protocol, dict):
        raise DataError(f"{path}: field 'protocol' must be an object, not {type(protocol).__name__}")

    rows = [_row(item, f"rows[{place}]") for place, item in enumerate(content["rows"])]
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if (row.method, row.seed) in seen:
            raise DataError(f"{path}: method {row.method!r} has seed {row.seed} twice; keep one of the rows")
        seen.add((row.method, row.seed))
    notes: list[str] = []
    runs = {(row.method, row.seed): _run(Path(grid_dir), row, notes if row.ok else []) for row in rows}
    return Grid(Path(grid_dir), protocol, rows, runs, notes)


def _row(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        raise DataError(f"{where} must be an object, not {type(item).__name__}")
    method = item.get("method")
    if not isinstance(method, str) or not method:
        raise DataError(f"{where}.method must be a non-empty name, not {method!r}")
    seed = item.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise DataError(f"{where}.seed of {method!r} must be an integer, not {seed!r}")
    status = item.get("status", "ok")
    if status not in ("ok", "failed"):
        raise DataError(f"{where}.status of {method!r} is {status!r}; choose 'ok' or 'failed'")
    kind = item.get("kind", "moe")
    if kind not in ("moe", "dense"):
        raise DataError(f"{where}.kind of {method!r} is {kind!r}; choose 'moe' or 'dense'")

    def told(name: str) -> float | None:
        return _number(item.get(name), f"{where}.{name} of {method!r}")

    bits_per_byte = told("bits_per_byte")
    error = str(item.get("error") or "")
    ok = status == "ok"
    if ok and bits_per_byte is None:
        ok, error = False, error or "finished without a finite bits_per_byte"
    tasks = _mapping(item.get("tasks"), f"{where}.tasks of {method!r}")
    return Row(
        method=method,
        label=str(item.get("label") or method),
        kind=kind,
        paper=item["paper"] if isinstance(item.get("paper"), int) else None,
        seed=seed,
        ok=ok,
        error=error if ok else error or "failed without saying why",
        causal=bool(item.get("causal", True)),
        bits_per_byte=bits_per_byte,
        best_bits_per_byte=told("best_bits_per_byte"),
        costs={name: value for name in COSTS if (value := told(name)) is not None},
        domains=_numbers(item.get("domains"), f"{where}.domains of {method!r}"),
        tasks={task: _numbers(value, f"{where}.tasks.{task} of {method!r}") for task, value in tasks.items()},
        notes=tuple(str(note) for note in item.get("notes") or ()),
        tuning=dict(_mapping(item.get("tuning"), f"{where}.tuning of {method!r}")),
    )


def _number(value: Any, where: str) -> float | None:
    """Return a finite float; missing, NaN and infinity are ``None``."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{where} must be a number, not {value!r}")
    return number(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object, not {type(value).__name__}")
    return value


def _numbers(value: Any, where: str) -> dict[str, float]:
    items = {name: _number(item, f"{where}.{name}") for name, item in _mapping(value, where).items()}
    return {name: item for name, item in items.items() if item is not None}


def _run(folder: Path, row: Row, notes: list[str]) -> Run:
    name = f"{row.method}-s{row.seed}"
    if Path(name).name != name:
        notes.append(
            f"The name {row.method!r} cannot be a folder's name, so the files of its runs were not read."
        )
        return Run([], {})
    hardware = _object(folder / name / "provenance.json", [], "").get("hardware")
    return Run(
        _metrics(folder / name / "metrics.jsonl", notes),
        _object(folder / name / "eval.json", notes, "no held-out curve, routing or sample text for this run"),
        hardware if isinstance(hardware, dict) else {},
        None if row.ok else _seconds(folder / name / "timing.jsonl"),
    )


def _metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        notes.append(f"{where} is missing: no training curve for this run.")
        return []
    steps, damaged = _lines(path)
    if damaged:
        notes.append(f"{where}: {damaged} damaged line(s) left out.")
    return steps


def _seconds(timing: Path) -> float | None:
    """How long a run that did not end had trained when it was last timed."""
    steps = _lines(timing)[0] if timing.is_file() else []
    return next((s for step in reversed(steps) if (s := number(step.get("seconds"))) is not None), None)


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines are none."""
    steps, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            step = json.loads(line)
        except json.JSONDecodeError:
            damaged += 1
            continue
        if isinstance(step, dict):
            steps.append(step)
    return steps, damaged


def _object(path: Path, notes: list[str], lacking: str) -> dict[str, Any]:
    """A JSON object, empty where there is none; notes say why."""
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        notes.append(f"{where} is missing: {lacking}.")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        notes.append(f"{where} is not valid JSON ({error}) and was left out.")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{where} is not an object and was left out.")
        return {}
    return content
