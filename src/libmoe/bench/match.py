"""Equal budgets: what every entry of a grid is sized and trained for, and how far from it it ends up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from libmoe.bench.budgets import (
    Budget,
    Calibrator,
    Design,
    Goal,
    Quantity,
    Solver,
    estimate_memory,
)
from libmoe.bench.grid import Entry, Grid
from libmoe.core.errors import ConfigError
from libmoe.data import load_tokenizer
from libmoe.methods import METHODS, create
from libmoe.models import Account, account
from libmoe.train import build_model
from libmoe.train.recipe import Recipe


@dataclass
class Matched:
    """An entry after solving.

    Attributes:
        options: of its method, complete.
        cost: of its model.
        residual: its largest mismatch as a share of the target, signed; ``None`` where nothing is matched.
        steps, tokens: of its run.
        residuals: mismatch of each quantity.
        clock_spread: how far its measured seconds per step, or the baseline's, scatter; ``wall_clock`` is matched no
            better than this, whatever the residual.
        unique_tokens: training tokens that its run goes over again and again; ``None`` for no limit.
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

    @property
    def epochs(self) -> float | None:
        """How often the run sees its data; ``None`` where they are not limited."""
        return None if self.unique_tokens is None else self.tokens / self.unique_tokens

    def recipe(self, grid: Grid, entry: Entry, seed: int) -> Recipe:
        """What one cell trains: the grid's recipe with the solved options and steps."""
        return _with_steps(grid.cell_recipe(entry, seed, self.options), self.steps)


def measure(grid: Grid, entry: Entry, options: Mapping[str, Any]) -> Account:
    """Exact cost of the entry's model; it is built without allocating weights."""
    recipe = grid.cell_recipe(entry, grid.seeds[0], dict(options))
    return account(_without_weights(recipe), seq_len=recipe.data.seq_len)


def match_sizes(grid: Grid, calibrator: Calibrator | None = None) -> dict[str, Matched]:
    """Options and steps of every entry, by key, solved for the grid's budget.

    An entry that sets its width itself (``expert_hidden``, or ``hidden`` of ``dense``) or its steps is left as it is
    and its mismatch is told.

    Args:
        calibrator: measures steps for ``wall_clock`` and for ``memory: measured``; give it a file, or a comparison
            that is resumed solves to other steps.

    Raises:
        ConfigError: a budget that cannot be met (the message gives the nearest reachable value).
    """
    return _Matching(grid, calibrator or Calibrator(steps=grid.calibration_steps)).run()


class _Matching:
    def __init__(self, grid: Grid, calibrator: Calibrator) -> None:
        self.grid, self.calibrator = grid, calibrator
        self.base = grid.entry(grid.baseline)
        self.solved: dict[str, Matched] = {}
        self._accounts: dict[str, Account] = {}
        self._memory: dict[str, float] = {}

    def run(self) -> dict[str, Matched]:
        base, steps = self.base, self._recipe(self.base, self.base.options).train.steps
        self.solved[base.key] = self._told(base, self._design(base, steps), {})
        # What others are measured against comes first.
        for entry in sorted(self.grid.entries, key=lambda e: e.key != self.grid.reference):
            if entry.key != base.key:
                self.solved[entry.key] = self._solve(entry)
        return {entry.key: self.solved[entry.key] for entry in self.grid.entries}

    # -- goals -------------------------------------------------------------------------------------------
    def _solve(self, entry: Entry) -> Matched:
        own = "train" in entry.recipe and "steps" in entry.recipe["train"]
        design = self._design(entry, self._recipe(entry, entry.options).train.steps)
        width = "hidden" if entry.method == "dense" else "expert_hidden"
        given = {"width": entry.options.get(width) is not None, "steps": own}
        budget = self.grid.budget(entry)
        targets = {goal: self._target(goal) for goal in self._goals(entry, budget)}
        solver = self._solver(entry, width)
        if open_goals := {goal: target for goal, target in targets.items() if not given.get(goal.knob)}:
            design = solver.solve(design, open_goals)
        if entry.tokens_per_param is not None:
            cost = self._account(entry, design.options)
            ratio = {Goal("tokens", "steps"): entry.tokens_per_param * cost.total_params}
            design, targets = solver.solve(design, ratio), targets | ratio
        return self._told(entry, design, solver.residuals(design, targets), budget.same_data)

    def _goals(self, entry: Entry, budget: Budget) -> tuple[Goal, ...]:
        """The reference sets the total parameters of the others, so it is not asked for them itself."""
        if entry.key == self.grid.reference and len(budget.goals) == 2:
            return tuple(goal for goal in budget.goals if goal.against != "reference")
        return budget.goals

    def _target(self, goal: Goal) -> float:
        """In the yardstick's own quantity: what the baseline has, or the total parameters of the reference."""
        key = self.base.key
        if goal.against == "reference" and self.grid.reference in self.solved:
            reference = self.grid.entry(self.grid.reference)
            # Sized by the baseline's total itself, the reference adds nothing but its own residual.
            asked = [g.quantity for g in self._goals(reference, self.grid.budget(reference))]
            key = self.base.key if "total_params" in asked else reference.key
        yardstick = self.solved[key]
        return self._count(self.grid.entry(key), goal.quantity, Design(yardstick.options, yardstick.steps))

    def _solver(self, entry: Entry, width: str) -> Solver:
        recipe = self._recipe(entry, entry.options)
        method = create(entry.method, entry.options)
        usual = {width: max(2, (recipe.backbone.intermediate_size or 4 * recipe.backbone.hidden_size))}
        if entry.method != "dense":
            usual |= {"num_experts": method.num_experts, "top_k": method.top_k}
            usual[width] = max(2, usual[width] // method.top_k)
        tolerance = self.grid.tolerance if entry.tolerance is None else entry.tolerance
        return Solver(
            entry.key,
            lambda quantity, design: self._count(entry, quantity, design),
            lambda options: _accepts(entry.method, options),
            width,
            usual,
            recipe.train.warmup_steps,
            tolerance,
        )

    # -- counting ----------------------------------------------------------------------------------------
    def _count(self, entry: Entry, quantity: Quantity, design: Design) -> float:
        if quantity == "wall_clock":
            recipe = self._recipe(entry, design.options)
            return self.calibrator(recipe).seconds_per_step * design.steps
        if quantity == "memory":
            return self._peak(entry, design.options)
        cost = self._account(entry, design.options)
        tokens = self._tokens(entry, design.steps)
        return {
            "active_params": float(cost.active_params),
            "total_params": float(cost.total_params),
            "flops": cost.flops_per_token,
            "train_flops": cost.train_flops_per_token * tokens,
            "tokens": float(tokens),
        }[quantity]

    def _account(self, entry: Entry, options: Mapping[str, Any]) -> Account:
        key = _key(entry, options)
        if key not in self._accounts:
            self._accounts[key] = measure(self.grid, entry, options)
        return self._accounts[key]

    def _peak(self, entry: Entry, options: Mapping[str, Any]) -> float:
        key = _key(entry, options)
        if key not in self._memory:
            recipe = self._recipe(entry, options)
            if self.grid.memory == "measured":
                self._memory[key] = float(self.calibrator(recipe).peak_memory_bytes)
            else:
                cost = self._account(entry, options)
                self._memory[key] = float(estimate_memory(_without_weights(recipe), cost, recipe))
        return self._memory[key]

    def _tokens(self, entry: Entry, steps: int) -> int:
        recipe = self._recipe(entry, entry.options)
        return steps * recipe.train.batch_size * recipe.data.seq_len

    # -- results -----------------------------------------------------------------------------------------
    def _told(
        self, entry: Entry, design: Design, residuals: dict[str, float], same_data: bool = False
    ) -> Matched:
        options = dict(design.options)
        try:
            _with_steps(self._recipe(entry, options), design.steps)
        except ConfigError as error:  # schedules have their say about steps too
            raise ConfigError(f"entry {entry.key!r}: {error}") from None
        return Matched(
            options,
            self._account(entry, options),
            max(residuals.values(), key=abs) if residuals else None,
            design.steps,
            self._tokens(entry, design.steps),
            residuals,
            max(self._spread(entry, options), self._spread(self.base, self.solved[self.base.key].options))
            if "wall_clock" in residuals
            else None,
            self.solved[self.base.key].tokens if same_data else None,
        )

    def _spread(self, entry: Entry, options: Mapping[str, Any]) -> float:
        return self.calibrator(self._recipe(entry, options)).spread

    def _recipe(self, entry: Entry, options: Mapping[str, Any]) -> Recipe:
        return self.grid.cell_recipe(entry, self.grid.seeds[0], dict(options))

    def _design(self, entry: Entry, steps: int) -> Design:
        """What a method counts out by the length of sequences is counted out by the recipe's."""
        known = {f.name for f in fields(METHODS.get(entry.method))}
        length = {"seq_len": self._recipe(entry, entry.options).data.seq_len} if "seq_len" in known else {}
        return Design(length | entry.options, steps)


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, steps=steps))


def _without_weights(recipe: Recipe) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(recipe, len(load_tokenizer(recipe.data.tokenizer)))


def _accepts(method: str, options: Mapping[str, Any]) -> bool:
    try:
        create(method, options)
    except ConfigError:
        return False
    return True


def _key(entry: Entry, options: Mapping[str, Any]) -> str:
    return json.dumps([entry.key, dict(options)], sort_keys=True)
