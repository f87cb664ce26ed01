"""Evaluations that are compared: opened, labelled, and what makes comparing them doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.eval.results.facts import find_evaluation, read_evaluation

SAME = ("limit", "shots", "chat_template", "system", "seed")
"""Settings that must be equal: with others, the documents or the prompts differ."""


@dataclass(frozen=True)
class Side:
    """One evaluation.

    Attributes:
        label: short, and different for each.
        facts: what ``evaluation.json`` says.
    """

    label: str
    folder: Path
    facts: Mapping[str, Any]


def open_sides(folders: Sequence[str | Path]) -> list[Side]:
    """The evaluations in ``folders``.

    Raises:
        DataError: a folder holds none.
        ConfigError: fewer than two, the same twice, or settings that do not allow to pair documents.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} evaluation cannot be compared; give two or more folders")
    places = [find_evaluation(folder) for folder in folders]
    for place, count in Counter(places).items():
        if count > 1:
            raise ConfigError(f"{place} is given {count} times; an evaluation cannot be compared with itself")
    facts = [read_evaluation(place) for place in places]
    names = [str(found.get("model")) for found in facts]
    labels = _labels(names if len(set(names)) == len(names) else [str(place) for place in places])
    sides = [Side(*side) for side in zip(labels, places, facts)]
    for side in sides[1:]:
        different = _different(sides[0].facts, side.facts)
        if different:
            raise ConfigError(
                f"{sides[0].label} and {side.label} cannot be paired: they were evaluated with {different}"
            )
    return sides


def _labels(names: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    paths = [PurePath(name).parts or (name,) for name in names]
    for depth in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(ends)) == len(ends):
            return ends
    return list(names)


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first setting because of which two evaluations cannot be paired."""
    ours, theirs = a.get("settings") or {}, b.get("settings") or {}
    for name in SAME:
        if ours.get(name) != theirs.get(name):
            return f"{name}={ours.get(name)!r} and {name}={theirs.get(name)!r}"
    return None


def about_side(side: Side) -> dict[str, Any]:
    """What a comparison says of each evaluation."""
    cost = side.facts.get("cost") or {}
    return {
        "label": side.label,
        "model": side.facts.get("model"),
        "folder": str(side.folder),
        "identity": side.facts.get("identity"),
        "time": side.facts.get("when"),
        "total_params": cost.get("total_params"),
        "active_params": cost.get("active_params"),
    }


def warnings(sides: Sequence[Side]) -> Iterator[str]:
    """What makes differences doubtful: flags of the models, other batch sizes where they matter, other releases."""
    for side in sides:
        yield from (f"{side.label}: {flag['text']}" for flag in side.facts.get("flags") or [])
    crossing = any(
        flag.get("kind") == "cross-batch" for side in sides for flag in side.facts.get("flags") or []
    )
    sizes = {side.label: (side.facts.get("settings") or {}).get("batch_size") for side in sides}
    if crossing and len(set(sizes.values())) > 1:
        yield "batch sizes differ: " + ", ".join(f"{label} {size}" for label, size in sizes.items())
    for library in ("lm-eval", "transformers", "torch"):
        versions = {side.label: (side.facts.get("versions") or {}).get(library) for side in sides}
        if len(set(versions.values())) > 1:
            yield f"{library} differs: " + ", ".join(
                f"{label} {version}" for label, version in versions.items()
            )
