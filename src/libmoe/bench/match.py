"""Equal budgets: solve the width of a model's experts so that a counted quantity meets its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from libmoe.bench.grid import Entry, Grid, Quantity
from libmoe.core.errors import ConfigError
from libmoe.data import load_tokenizer
from libmoe.models import Account, account
from libmoe.train import build_model

ROUNDS = 8
"""Corrections of a width; one is enough for every method whose cost is linear in it."""


@dataclass
class Matched:
    """An entry's options after solving, its cost, and how far from the target it is (share of the target)."""

    options: dict[str, Any]
    cost: Account
    residual: float | None


def measure(grid: Grid, entry: Entry, options: dict[str, Any]) -> Account:
    """Exact cost of the entry's model; it is built without allocating weights."""
    recipe = grid.cell_recipe(entry, grid.seeds[0], options)
    with torch.device("meta"):
        model = build_model(recipe, len(load_tokenizer(recipe.data.tokenizer)))
    return account(model, seq_len=recipe.data.seq_len)


def _quantity(cost: Account, what: Quantity) -> float:
    return {
        "active_params": cost.active_params,
        "total_params": cost.total_params,
        "flops": cost.flops_per_token,
    }[what]


def match_sizes(grid: Grid) -> dict[str, Matched]:
    """Options of every entry, by key, with expert widths solved for the grid's budget.

    An entry that sets its width itself (``expert_hidden``, or ``hidden`` of ``dense``) is left as it is and its
    mismatch is reported.

    Raises:
        ConfigError: no width can meet the target (the message gives the nearest reachable value).
    """
    base = grid.entry(grid.baseline)
    baseline_cost = measure(grid, base, base.options)
    solved = {base.key: Matched(dict(base.options), baseline_cost, None)}
    # Entries matched on total parameters need the reference's size, so they come last.
    ordered = sorted(
        (e for e in grid.entries if e.key != base.key),
        key=lambda e: (e.match or grid.match) == "total_params",
    )
    for entry in ordered:
        what = entry.match or grid.match
        if what == "none":
            solved[entry.key] = Matched(dict(entry.options), measure(grid, entry, entry.options), None)
            continue
        by_reference = what == "total_params" and grid.reference in solved
        target = _quantity(solved[grid.reference].cost if by_reference else baseline_cost, what)
        solved[entry.key] = _solve(grid, entry, what, target)
    return {e.key: solved[e.key] for e in grid.entries}


def _solve(grid: Grid, entry: Entry, what: Quantity, target: float) -> Matched:
    knob = "hidden" if entry.method == "dense" else "expert_hidden"
    if entry.options.get(knob) is not None:
        cost = measure(grid, entry, entry.options)
        return Matched(dict(entry.options), cost, _quantity(cost, what) / target - 1)

    def at(width: int) -> tuple[Account, float]:
        cost = measure(grid, entry, entry.options | {knob: width})
        return cost, _quantity(cost, what)

    # Counted quantities are linear in the width, so two measurements give the answer.  More rounds follow where
    # a method rounds its widths.
    (_, low), (cost, value) = at(1), at(2)
    slope, width = value - low, 2
    if slope <= 0:
        raise ConfigError(f"entry {entry.key!r}: {what} does not grow with {knob}; set match: none for it")
    for _ in range(ROUNDS):
        wanted = width + round((target - value) / slope)
        if wanted == width:
            break
        if wanted < 1:
            raise ConfigError(
                f"entry {entry.key!r}: even {knob}=1 has {low:.4g} {what.replace('_', ' ')}, above the budget of "
                f"{target:.4g}; use fewer or smaller shared parts"
            )
        width = wanted
        cost, value = at(width)
    return Matched(entry.options | {knob: width}, cost, value / target - 1)
