"""A grid: which methods, which seeds, one recipe, and what is held equal."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from libmoe.core.config import build, override, to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.seeding import derive_seed
from libmoe.methods import METHODS, create
from libmoe.train.recipe import Recipe

Quantity = Literal["none", "active_params", "total_params", "flops"]


@dataclass
class Entry:
    """One line of the comparison.

    Attributes:
        method: registered name; ``options`` are the method's own.
        key: name in tables and folders; the method's name when empty.
        label: words for people; the key when empty.
        match: what its size is solved for; ``None`` takes the grid's.
        recipe: changes to the grid's recipe for this entry alone (for example its own learning rate).
    """

    method: str
    key: str = ""
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    match: Quantity | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = self.key or self.method
        self.label = self.label or self.key


@dataclass
class Grid:
    """Methods x seeds under one recipe.

    Attributes:
        baseline: key of the dense entry whose size sets the budget of the others.
        reference: key of the entry whose total parameters a ``match: total_params`` entry must meet.
        match: what is held equal to the baseline by solving the width of the experts.
        workers: cells that run at once; each gets its share of the cores.
    """

    name: str
    recipe: Recipe
    entries: list[Entry]
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    baseline: str = "dense"
    reference: str = "smoe"
    match: Quantity = "active_params"
    workers: int = 2

    def __post_init__(self) -> None:
        keys = [e.key for e in self.entries]
        double = sorted({k for k in keys if keys.count(k) > 1})
        if double:
            raise ConfigError(f"two entries are called {double[0]!r}; give each a key of its own")
        for name in (self.baseline, self.reference):
            if name not in keys:
                raise unknown("entry", name, keys)
        if not self.seeds:
            raise ConfigError("seeds: at least one seed is needed, for example [0, 1]")
        for entry in self.entries:
            create(entry.method, entry.options)

    def entry(self, key: str) -> Entry:
        return next(e for e in self.entries if e.key == key)

    def cell_recipe(self, entry: Entry, seed: int, options: dict[str, Any]) -> Recipe:
        """The full recipe of one run: the grid's, the entry's changes, its method and the seed."""
        values = copy.deepcopy(to_dict(self.recipe))
        _merge(values, entry.recipe)
        values["name"] = f"{self.name}/{entry.key}"
        values["method"] = {**values.get("method", {}), "name": entry.method, "options": options}
        values["seed"] = seed
        return build(Recipe, values, where=f"entry {entry.key}")

    def select(self, keys: Sequence[str]) -> None:
        """Keep only the named entries (and the two that set budgets)."""
        known = [e.key for e in self.entries]
        for key in keys:
            if key not in known:
                raise unknown("entry", key, known)
        keep = {*keys, self.baseline, self.reference}
        self.entries = [e for e in self.entries if e.key in keep]

    def add_method(self, name: str, options: dict[str, Any] | None = None) -> None:
        """Put a method that the grid file does not list into the comparison."""
        if name in [e.key for e in self.entries]:
            return
        METHODS.get(name)
        self.entries.append(Entry(method=name, options=options or self._shared_options()))

    def _shared_options(self) -> dict[str, Any]:
        reference = self.entry(self.reference).options
        return {k: v for k, v in reference.items() if k in ("num_experts", "top_k")}

    def fingerprint(self) -> int:
        return derive_seed(0, to_dict(self))


def _merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def packaged_grids() -> dict[str, Path]:
    """Grid files that ship with the package, by name."""
    folder = resources.files("libmoe") / "recipes" / "grids"
    return {p.name.removesuffix(".yaml"): Path(str(p)) for p in folder.iterdir() if p.name.endswith(".yaml")}


def load_grid(source: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a grid by packaged name or path, with ``key.sub=value`` overrides.

    Raises:
        ConfigError: no such file, not YAML, or an unknown key or value (naming the nearest valid one).
    """
    shipped = packaged_grids()
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise unknown("grid", source, shipped)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    for assignment in overrides:
        override(values, assignment)
    return build(Grid, values)
