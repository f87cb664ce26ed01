"""Moving versions between stages: through a gate into production, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libmoe.core.errors import CheckpointError, ConfigError, DataError, unknown
from libmoe.core.files import hold
from libmoe.mlops.comparison import Regression, regression
from libmoe.mlops.gate import Gate
from libmoe.mlops.history import STAGES, SUPERSEDED, History, Stage, event
from libmoe.mlops.registry import Entry, Registry


def promote(
    registry: Registry,
    name: str,
    version: int | str | None = None,
    stage: str = "production",
    *,
    require: list[str] | None = None,
    not_worse: bool = False,
) -> list[dict[str, Any]]:
    """Put a version into a stage; into production only if it passes the gate.

    The version that was in production is archived. A refusal is noted in the history.

    Args:
        version: see :meth:`Registry.entry`.
        require, not_worse: asked for besides what the model's ``gate.yaml`` says, see :class:`libmoe.mlops.gate.Gate`.

    Returns:
        What the gate found, empty for other stages.

    Raises:
        ConfigError: no such model, version or stage, it is there already, or it does not pass (says by what).
        CheckpointError: its files are not those that were registered.
        DataError: it cannot be compared with the version in production.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    target: Stage = stage
    entry = registry.entry(name, version)
    number, home = entry["version"], registry.folder / name
    with hold(home):
        history = History(home)
        if history.stage(number) == target:
            raise ConfigError(f"v{number} of {name} is in {target} already")
        if target != "production":
            history.add(event(number, target, "moved"))
            return []
        check_files(registry, entry)
        current = _current(registry, name)
        gate = Gate.of(home, require or [], not_worse)
        found = gate.check(
            entry["metrics"],
            entry["missing"],
            _compare(registry, entry, current) if gate.not_worse and current is not None else None,
        )
        failed = [f"{each['what']}, found {each['found']}" for each in found if not each["passed"]]
        if failed:
            history.add(event(number, None, "refused", found))
            raise ConfigError(f"v{number} of {name} stays in {history.stage(number)}: {'; '.join(failed)}")
        left = [event(current["version"], "archived", SUPERSEDED)] if current is not None else []
        history.add(*left, event(number, "production", "promoted", found))
        return found


def rollback(registry: Registry, name: str) -> int:
    """Take the version in production out of it and put back the one before it; returns its number.

    Raises:
        ConfigError: no such model, or there is none to go back to.
        CheckpointError: the files of the one before are not those that were registered.
    """
    registry.resolve(name, None)
    home = registry.folder / name
    with hold(home):
        history = History(home)
        current, stack = _current(registry, name), history.production()
        back = stack[:-1] if current is not None else stack
        if not back:
            raise ConfigError(f"{name} has no earlier version in production to go back to")
        check_files(registry, registry.entry(name, back[-1]))
        why = f"rolled back to v{back[-1]}"
        left = [event(current["version"], "archived", why)] if current is not None else []
        history.add(*left, event(back[-1], "production", "rollback"))
    return back[-1]


def check_files(registry: Registry, entry: Entry) -> None:
    """Raises CheckpointError where a version's files are not those that were registered."""
    if problems := registry.verify(entry["name"], entry["version"]):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"v{entry['version']} of {entry['name']} is not what was registered: {problems[0]}{more}; "
            "restore the files, or register them as a new version"
        )


def _current(registry: Registry, name: str) -> Entry | None:
    numbers = [number for number, stage in registry.stages(name).items() if stage == "production"]
    return registry.entry(name, numbers[0]) if numbers else None


def _compare(registry: Registry, entry: Entry, current: Entry) -> Regression:
    folders = (entry["run"], current["run"])
    runs = (Path(folders[0]), Path(folders[1])) if None not in folders else None
    try:
        return regression(
            registry.run_file(entry, "eval.json"), registry.run_file(current, "eval.json"), runs
        )
    except DataError as error:
        raise DataError(
            f"v{entry['version']} and v{current['version']} of {entry['name']}: {error}"
        ) from None
