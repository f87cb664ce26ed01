"""Which settings each entry tries: the same draws for all, and what is left of them for each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from libmoe.bench.tuning.settings import OPTION, Tuning
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.data.order import permutation
from libmoe.methods import METHODS, create
from libmoe.train.recipe import Recipe

if TYPE_CHECKING:
    from libmoe.bench.entry import Entry
    from libmoe.bench.grid import Grid

Settings = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Settings to try; ``draw`` is their place among all draws, which orders them from small values to large."""

    draw: int
    settings: Settings


def candidates(tuning: Tuning, entry: Entry) -> list[Candidate]:
    """What the entry tries, without repetitions: draws that differ in a knob it lacks are the same run.

    Such an entry has fewer trials.  More of them could not tell it anything: all it could choose has been tried.
    """
    found: list[Candidate] = []
    for draw, settings in enumerate(draws(tuning)):
        own = {key: value for key, value in settings.items() if has_knob(entry, key, tuning.knobs[key])}
        if own not in [candidate.settings for candidate in found]:
            found.append(Candidate(draw, own))
    return found


def draws(tuning: Tuning) -> list[Settings]:
    """Combinations of the knobs in ascending order, all of them or the random ``trials``."""
    kept = sorted(permutation(tuning.combinations, "tuning", tuning.seed)[: tuning.draws].tolist())
    products = list(itertools.product(*tuning.knobs.values()))
    return [dict(zip(tuning.knobs, products[i], strict=True)) for i in kept]


def has_knob(entry: Entry, key: str, values: list[Any]) -> bool:
    """Whether the entry's method has the option; every entry has the knobs of training.

    A method may have a field that it refuses to have set, as ``dense`` does with all that concerns experts.
    """
    name = key.removeprefix(OPTION)
    own = {field.name: field for field in fields(METHODS.get(entry.method)) if field.init}
    if not key.startswith(OPTION):
        return True
    telling = [value for value in values if name in own and value != own[name].default]
    return bool(telling) and any(_refusal(entry, {name: value}) is None for value in telling)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """``recipe`` with the values of dotted keys.

    Raises:
        ConfigError: an impossible value.
    """
    values = copy.deepcopy(to_dict(recipe))
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = values
        for group in groups:
            node = node[group]
        node[last] = value
    return build(Recipe, values, where="tuning.knobs")


def check_tuning(tuning: Tuning, grid: Grid) -> None:
    """What can be refused before anything is counted or trained.

    Raises:
        ConfigError: a seed of the comparison, a knob that an entry sets itself or no method has, an impossible value.
    """
    tuning.refuse_seeds(grid.seeds)
    for key, values in tuning.knobs.items():
        having = [entry for entry in grid.entries if has_knob(entry, key, values)]
        if not having:
            raise _nobody(key, values, grid)
        for entry in having:
            if _set_by(entry, key):
                raise ConfigError(
                    f"entry {entry.key!r} sets {key} itself; leave that out, or take it out of tuning.knobs"
                )
            for value in values:
                _try(grid, entry, key, value)


def _try(grid: Grid, entry: Entry, key: str, value: Any) -> None:
    refusal = _refusal(entry, {key.removeprefix(OPTION): value}) if key.startswith(OPTION) else None
    if refusal is not None:
        raise ConfigError(f"tuning.knobs.{key}, entry {entry.key!r}: {refusal}")
    try:
        with_settings(grid.cell_recipe(entry, grid.seeds[0], entry.options), {key: value})
    except ConfigError as error:
        raise ConfigError(f"tuning.knobs.{key}={value!r}, entry {entry.key!r}: {error}") from None


def _refusal(entry: Entry, options: Settings) -> ConfigError | None:
    """Why the method does not take these options."""
    try:
        create(entry.method, entry.options | options)
    except ConfigError as error:
        return error
    return None


def _set_by(entry: Entry, key: str) -> bool:
    node: Any = {"method": {"options": entry.options}} if key.startswith(OPTION) else entry.recipe
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _nobody(key: str, values: list[Any], grid: Grid) -> ConfigError:
    """The error for an option that no entry has: why the nearest ones refuse it, or what it might be called."""
    name = key.removeprefix(OPTION)
    known = {
        field.name for entry in grid.entries for field in fields(METHODS.get(entry.method)) if field.init
    }
    if name not in known:
        return unknown("option of any entry's method", name, known)
    own = [e for e in grid.entries if name in {field.name for field in fields(METHODS.get(e.method))}]
    refusals = [error for e in reversed(own) for value in values if (error := _refusal(e, {name: value}))]
    reason = f" ({refusals[0]})" if refusals else ""
    return ConfigError(f"tuning.knobs.{key}: no entry takes another value than its own{reason}")
