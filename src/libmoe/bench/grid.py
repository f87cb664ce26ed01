"""A grid: which methods, which seeds, one recipe, and what is held equal."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from libmoe.bench.budgets.quantities import Budget, Solve, parse_budget
from libmoe.bench.budgets.sweeps import Sweep
from libmoe.bench.entry import Entry, refuse_method
from libmoe.bench.prepared import Prepared
from libmoe.bench.tuning import Tuning
from libmoe.bench.tuning.candidates import check_tuning
from libmoe.bench.until import Until
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.methods import METHODS, Method
from libmoe.train.recipe import Recipe, read_yaml

SHARED_OPTIONS = ("num_experts", "top_k")
"""What a method that is added to a grid takes over from the grid's reference."""


@dataclass
class Grid:
    """Methods x seeds under one recipe.

    Attributes:
        baseline: key of the dense entry whose size sets the budget of the others.
        reference: key of the entry whose total parameters a ``match: total_params`` entry must meet, and whose
            numbers of experts an added method takes over; it may be missing where nothing asks for it.
        match: what is held equal: ``active_params``, ``total_params``, ``flops`` of a token's forward pass,
            ``train_flops`` of the run, ``tokens``, ``wall_clock``, ``memory``, ``none``, two of them joined by ``+``,
            ``parameter_equal`` or ``equal_ncd``.
        solve: by what: ``width`` of the experts, number of ``experts`` or ``steps``; ``auto`` takes steps where the
            run is concerned and else the width.
        tolerance: largest mismatch that is not refused, as a share of the target.
        memory: ``estimated`` from what is counted, or ``measured`` in a few steps.
        calibration_steps: how many steps are timed for ``wall_clock``.
        sweeps: families of further entries, each of one number that varies.
        workers: cells that run at once; each gets its share of the cores.
        families: groups of entries whose members are compared among themselves too, keys by name.
        until: adds seeds look by look until every method is decided against the baseline; ``seeds`` are then the
            first ones.
        tuning: how each entry's settings are chosen before its cells run; ``None`` takes them as they are given.
        prepare: runs whose models this comparison starts from; those that are not there are trained first.
    """

    name: str
    recipe: Recipe
    entries: list[Entry]
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    baseline: str = "dense"
    reference: str = "smoe"
    match: str = "active_params"
    solve: Solve = "auto"
    tolerance: float = 0.01
    memory: Literal["estimated", "measured"] = "estimated"
    calibration_steps: int = 8
    sweeps: list[Sweep] = field(default_factory=list)
    workers: int = 2
    families: dict[str, list[str]] = field(default_factory=dict)
    until: Until | None = None
    tuning: Tuning | None = None
    prepare: list[Prepared] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entries = [*self.entries, *(build(Entry, e) for s in self.sweeps for e in s.entries())]
        self.sweeps = []  # they are entries now, also in what is saved
        if double := _doubles([e.key for e in self.entries]):
            raise ConfigError(f"two entries are called {double[0]!r}; give each a key of its own")
        if double := _doubles(self.seeds):
            raise ConfigError(f"seeds: {double[0]} is there twice; name each seed once")
        if not self.seeds:
            raise ConfigError("seeds: at least one seed is needed, for example [0, 1]")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if self.tolerance < 0:
            raise ConfigError(f"tolerance must not be negative, got {self.tolerance}; 0.01 is one per cent")
        if self.until is not None:
            self.seeds = self.until.seeds(self.seeds)
        parse_budget(self.match, self.solve)
        for name in self._budget_keys():
            self.entry(name)
        self._check_families()
        for entry in self.entries:
            entry.check()
        if self.tuning is not None:
            check_tuning(self.tuning, self)

    def entry(self, key: str) -> Entry:
        """The entry called ``key``.  Raises ConfigError naming the nearest one when there is none."""
        for entry in self.entries:
            if entry.key == key:
                return entry
        raise unknown("entry", key, [e.key for e in self.entries])

    def budget(self, entry: Entry) -> Budget:
        """What the entry must meet: its own ``match`` and ``solve``, or the grid's; nothing for the baseline.

        Raises:
            ConfigError: they do not go together.
        """
        inherited = self.solve if entry.match is None else "auto"
        if entry.method == "dense" and inherited == "experts":
            inherited = "auto"  # a dense entry of a grid that counts out experts still has a width
        try:
            if entry.key == self.baseline:
                entry.refuse_budget()
                budget = Budget()
            else:
                budget = parse_budget(entry.match or self.match, entry.solve or inherited)
            if entry.tokens_per_param is not None:
                entry.refuse_other_steps(budget)
        except ConfigError as error:
            raise ConfigError(f"entry {entry.key!r}: {error}") from None
        return budget

    def cell_recipe(self, entry: Entry, seed: int, options: dict[str, Any]) -> Recipe:
        """The full recipe of one run: the grid's, the entry's changes, its method and the seed."""
        values = copy.deepcopy(to_dict(self.recipe))
        _merge(values, entry.recipe)
        values["name"] = f"{self.name}/{entry.key}"
        values["method"] |= {"name": entry.method, "options": options}
        values["seed"] = seed
        return build(Recipe, values, where=f"entry {entry.key}")

    def select(self, keys: Sequence[str]) -> None:
        """Keep only the named entries, the baseline, and the reference if one of them is sized by it."""
        chosen = [self.entry(key) for key in keys]
        self.entries = [e for e in self.entries if e in chosen or e.key in self._budget_keys(chosen)]
        left = {e.key for e in self.entries}
        kept = {name: [key for key in keys if key in left] for name, keys in self.families.items()}
        self.families = {name: keys for name, keys in kept.items() if len(keys) > 1}

    def add_method(self, name: str) -> None:
        """Put a method that the grid does not list into the comparison.

        It gets as many experts as the reference has, and joins the families that the reference is in.
        """
        name = METHODS.info(name).name
        if name not in [e.key for e in self.entries]:
            self.entries.append(Entry(method=name, options=self._shared_options(name)))
            self.entries[-1].check()
            for keys in self.families.values():
                if self.reference in keys:
                    keys.append(name)

    def _shared_options(self, name: str) -> dict[str, Any]:
        """Options of the reference that ``name`` leaves open: the k of a top-1 router is no shared option."""
        reference = next((e.options for e in self.entries if e.key == self.reference), {})
        usual = {f.name: f.default for f in dataclasses.fields(Method)}
        own = {f.name: f.default for f in dataclasses.fields(METHODS.get(name)) if f.init}
        return {
            option: reference[option]
            for option in SHARED_OPTIONS
            if option in reference and own.get(option, dataclasses.MISSING) == usual[option]
        }

    def _check_families(self) -> None:
        for name, keys in self.families.items():
            for key in keys:
                if key not in [e.key for e in self.entries]:
                    raise ConfigError(
                        f"families.{name}: {unknown('entry', key, [e.key for e in self.entries])}"
                    )
            if double := _doubles(keys):
                raise ConfigError(f"families.{name}: {double[0]!r} is there twice; name each entry once")
            if len(keys) < 2:
                raise ConfigError(f"families.{name}: {keys} is no group to compare; name two entries or more")

    def _budget_keys(self, entries: Sequence[Entry] | None = None) -> list[str]:
        """Keys of the entries that set the sizes of ``entries`` (all of them by default)."""
        asking = [e for e in (self.entries if entries is None else entries) if self.budget(e).uses_reference]
        return [self.baseline, self.reference] if asking else [self.baseline]


def _doubles(values: Sequence[Any]) -> list[Any]:
    return [v for i, v in enumerate(values) if v in values[:i]]


def _merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def load_grid(source: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a grid by packaged name or path, with ``key.sub=value`` overrides.

    Raises:
        ConfigError: no such file, not YAML, or an unknown key or value (naming the nearest valid one).
    """
    values = read_yaml("grid", source, "recipes/grids", overrides)
    refuse_method(values.get("recipe"), "recipe", "set the options of the entries in a grid file of your own")
    return build(Grid, values)
