"""An entry of a grid after solving."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid
from libmoe.models import Account
from libmoe.train.recipe import Recipe


@dataclass
class Matched:
    """What an entry trains, and how well it meets its budget.

    Attributes:
        options: of its method, complete.
        cost: of its model.
        residual: its largest mismatch as a share of the target, signed; ``None`` where nothing is matched.
        steps, tokens: of its run.
        residuals: mismatch of each quantity.
        clock_spread: how far its time, measured against the baseline's, scatters from round to round; ``wall_clock``
            is matched no better than this, whatever the residual.
        unique_tokens: training tokens that its run goes over again and again; ``None`` for no limit but the recipe's.
    """

    options: dict[str, Any]
    cost: Account
    residual: float | None
    steps: int
    tokens: int
    residuals: dict[str, float] = field(default_factory=dict)
    clock_spread: float | None = None
    unique_tokens: int | None = None

    @property
    def train_flops(self) -> float:
        return self.cost.train_flops_per_token * self.tokens

    @property
    def tokens_per_param(self) -> float:
        """Training tokens for each total parameter."""
        return self.tokens / self.cost.total_params

    def recipe(self, grid: Grid, entry: Entry, seed: int) -> Recipe:
        """What one cell trains: the grid's recipe with the solved options, steps and data.

        Raises:
            ConfigError: a schedule that the steps do not fit.
        """
        recipe = grid.cell_recipe(entry, seed, self.options)
        data = recipe.data
        if self.unique_tokens is not None:
            data = replace(data, unique_tokens=self.unique_tokens)
        return replace(recipe, train=replace(recipe.train, steps=self.steps), data=data)
