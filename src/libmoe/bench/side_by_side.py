"""Two runs side by side: which numbers are the same, and what around them differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from libmoe.core.errors import DataError
from libmoe.core.files import digest, read_json
from libmoe.core.machine import installed_version

Verdict = Literal["bitwise", "within tolerance", "differs"]
VERDICTS: tuple[Verdict, ...] = ("bitwise", "within tolerance", "differs")

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


def compare(run: Path, fresh: Path, last: int, whole: bool, tolerance: float) -> list[Quantity]:
    """Losses up to step ``last`` and, of whole runs, held-out scores and tasks.

    Raises:
        DataError: logs that are damaged.
    """
    before, now = metrics(run), metrics(fresh)
    kinds: dict[str, tuple[Numbers, Numbers]] = {}
    for side, records in enumerate((before, now)):
        for step, record in records.items():
            if step > last:
                continue
            for name, key in (("loss", "loss"), ("auxiliary losses", "losses"), ("validation", "eval")):
                for path, value in _leaves(record.get(key), f"step {step}"):
                    kinds.setdefault(name, ({}, {}))[side][path] = value
    found = [_quantity(name, a, b, tolerance) for name, (a, b) in kinds.items()]
    then, again = read_json(run / "eval.json"), read_json(fresh / "eval.json") or {}
    if whole and then is not None:
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


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Lines of ``metrics.jsonl`` by step; half a line at the end is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return {record["step"]: record for record in map(json.loads, lines) if "loss" in record}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'metrics.jsonl'} is damaged: a line is no record of a step") from None


def same_weights(run: Path, fresh: Path) -> bool | None:
    """Whether the final weights are equal to the last bit; ``None`` where one run has none."""
    before, now = (
        {file.name: digest(file) for file in (folder / "model").glob("*.safetensors")}
        for folder in (run, fresh)
    )
    return before == now if before and now else None


def not_compared(run: Path, last: int, whole: bool, weights: bool | None) -> list[str]:
    """What else there might have been to compare, and why it was not, a line each."""
    if not whole:
        return [f"held-out scores and final weights: the run was repeated to step {last} only"]
    lines = []
    if read_json(run / "eval.json") is None:
        lines.append(f"held-out scores: {run} has no eval.json that can be read")
    if weights is None:
        lines.append(f"final weights: {run} has none (model/*.safetensors)")
    return lines


def training_differences(run: Path, fresh: Path) -> list[str]:
    """What differs in what training notes of its environment: device, processes, threads, versions."""
    return _unequal("", read_json(run / "env.json"), read_json(fresh / "env.json"))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances, a line each: ``hardware.cpu was X, now Y``."""
    found = []
    for key in ("recipe", "data"):
        found += _unequal(key, then.get(key), now.get(key))
    found += _unequal("plugins", _digests(then), _digests(now))
    for key in ("libmoe", "git", "python", "hardware", "torch", "environment"):
        found += _unequal(key, then.get(key), now.get(key))
    for name, version in then.get("packages", {}).items():
        if (installed := installed_version(name)) != version:
            found.append(f"{name} was {version}, now {installed or 'not installed'}")
    if then.get("before"):
        found.append(f"the run was interrupted and went on elsewhere {len(then['before'])} time(s)")
    return found


def _digests(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """Plugins by their content; where they lie does not matter."""
    return {plugin["name"]: plugin["sha256"] for plugin in facts.get("plugins", ())}


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
