"""``libmoe registry``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from libmoe.cli.output import emit_json, say, table
from libmoe.mlops import Registry, promote, rollback
from libmoe.mlops.history import History


def add(folder: Path | None, name: str, source: Path, note: str, *, copy: bool, as_json: bool) -> None:
    registry = Registry(folder)
    known = registry.versions(name)
    entry = registry.add(name, source, note=note, copy=copy)
    if as_json:
        emit_json(entry)
    title = f"{name} v{entry['version']}" + (" (registered before)" if entry["version"] in known else "")
    say(f"{title}: weights {entry['weights'][:12]}, {_score(entry)}, in {_stage(registry, entry)}")
    if entry["missing"]:
        say(f"Unknown of where it comes from: {', '.join(entry['missing'])}")


def listing(folder: Path | None, *, as_json: bool) -> None:
    registry = Registry(folder)
    found = [registry.entry(name, number) for name in registry.names() for number in registry.versions(name)]
    rows = [entry | {"stage": _stage(registry, entry)} for entry in found]
    if as_json:
        emit_json(rows)
        return
    table(
        ["model", "version", "stage", "held-out bits per byte", "weights", "registered"],
        [
            [r["name"], f"v{r['version']}", r["stage"], _score(r, "-"), r["weights"][:12], r["when"][:16]]
            for r in rows
        ],
    )
    say(f"{len(rows)} version{'s' * (len(rows) != 1)} in {registry.folder}")


def show(folder: Path | None, name: str, version: str | None, *, as_json: bool) -> None:
    registry = Registry(folder)
    entry = registry.entry(name, version)
    events = [
        each for each in History(registry.folder / name).events() if each["version"] == entry["version"]
    ]
    facts = entry | {
        "stage": _stage(registry, entry),
        "folder": str(registry.model_folder(entry)),
        "history": events,
    }
    if as_json:
        emit_json(facts)
        return
    git = entry["git"] or {}
    table(
        ["", f"{name} v{entry['version']}"],
        [
            ["stage", facts["stage"]],
            ["model", facts["folder"]],
            ["run", entry["run"] or "unknown"],
            ["weights (SHA-256)", entry["weights"]],
            ["recipe (SHA-256)", entry["recipe"] or "unknown"],
            ["commit", git.get("commit", "unknown") + (" with changes" if git.get("dirty") else "")],
            *([f"data {source}", digest or "unknown"] for source, digest in entry["data"].items()),
            ["command", entry["command"] or "unknown"],
            ["note", entry["note"] or "-"],
            *([metric, f"{value:.6g}"] for metric, value in entry["metrics"].items()),
        ],
    )
    for each in events:
        say(f"{each['when'][:16]}  {each['stage'] or 'not moved'}: {each['why']}{_failed(each)}")


def move(
    folder: Path | None,
    name: str,
    version: str | None,
    stage: str,
    require: Sequence[str],
    *,
    not_worse: bool,
    as_json: bool,
) -> None:
    registry = Registry(folder)
    number = registry.resolve(name, version)
    found = promote(registry, name, number, stage, require=list(require), not_worse=not_worse)
    if as_json:
        emit_json({"name": name, "version": number, "stage": stage, "gate": found})
    elif found:
        table(["required", "found"], [[each["what"], _found(each["found"])] for each in found])
    say(f"{name} v{number} is in {stage}")


def back(folder: Path | None, name: str, *, as_json: bool) -> None:
    number = rollback(Registry(folder), name)
    if as_json:
        emit_json({"name": name, "version": number, "stage": "production"})
    say(f"{name} v{number} is in production again")


def verify(folder: Path | None, name: str | None, version: str | None, *, as_json: bool) -> None:
    """Exits with code 1 when a file is gone or has changed."""
    registry = Registry(folder)
    names = registry.names() if name is None else [name]
    versions = {
        each: registry.versions(each) if version is None else [registry.resolve(each, version)]
        for each in names
    }
    if name is not None:
        registry.resolve(name, version)
    problems = {
        f"{each} v{number}": registry.verify(each, number)
        for each, numbers in versions.items()
        for number in numbers
    }
    if as_json:
        emit_json(problems)
    for what, lines in problems.items():
        say(f"{what}: {'; '.join(lines) if lines else 'as it was registered'}")
    if any(problems.values()):
        raise typer.Exit(1)


def _stage(registry: Registry, entry: dict[str, Any]) -> str:
    return registry.stages(entry["name"])[entry["version"]]


def _score(entry: dict[str, Any], none: str = "not evaluated") -> str:
    value = entry["metrics"].get("bits_per_byte")
    return none if value is None else f"{value:.4f}" + (" bits per byte" if none != "-" else "")


def _found(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _failed(event: dict[str, Any]) -> str:
    failed = [
        f"{each['what']}, found {_found(each['found'])}" for each in event["gate"] or [] if not each["passed"]
    ]
    return f" ({'; '.join(failed)})" if failed else ""
