"""Options and steps of every entry of a grid, solved for its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from libmoe.bench.budgets import Calibrator, Clock, Design, Goal, Quantity, Solver
from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid
from libmoe.bench.match.costs import Costs
from libmoe.bench.match.matched import Matched
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import to_json
from libmoe.methods import METHODS, create
from libmoe.train.build import load_data


def match_sizes(
    grid: Grid, calibrator: Calibrator | None = None, known: Mapping[str, Matched] | None = None
) -> dict[str, Matched]:
    """Options and steps of every entry, by key, solved for the grid's budget.

    An entry that sets its width itself (``expert_hidden``, or ``hidden`` of ``dense``) or its steps is left as it is
    and its mismatch is told.

    Args:
        calibrator: measures steps for ``wall_clock`` and for ``memory: measured``.
        known: what was solved before (:func:`libmoe.bench.match.read_sizes`); it is taken as it is.

    Raises:
        ConfigError: a budget that cannot be met (the message gives the nearest reachable value).
    """
    return _Matching(grid, calibrator or Calibrator(steps=grid.calibration_steps), known or {}).run()


class _Matching:
    """Models first, then clocks, because models that are timed must be there together; then steps."""

    def __init__(self, grid: Grid, calibrator: Calibrator, known: Mapping[str, Matched]) -> None:
        self.grid, self.calibrator = grid, calibrator
        self.costs = Costs(grid, calibrator)
        self.base = grid.entry(grid.baseline)
        self.solved = {entry.key: known[entry.key] for entry in grid.entries if entry.key in known}
        self.designs = {key: Design(m.options, m.steps) for key, m in self.solved.items()}
        self.clocks: dict[str, Clock] = {}
        self._repeatable: set[str] = set()

    def run(self) -> dict[str, Matched]:
        rank = {self.grid.baseline: 0, self.grid.reference: 1}  # what others are measured against comes first
        new = [e for e in self.grid.entries if e.key not in self.solved]
        new.sort(key=lambda entry: rank.get(entry.key, 2))
        if self.base in new:
            self._solve_steps(self.base, self._start(self.base))
            new.remove(self.base)
        for entry in new:
            self.designs[entry.key] = self._model(entry)
        self._measure(new)
        for entry in new:
            self._solve_steps(entry, self.designs[entry.key])
        return {entry.key: self.solved[entry.key] for entry in self.grid.entries}

    # -- three passes ------------------------------------------------------------------------------------
    def _start(self, entry: Entry) -> Design:
        """What a method counts out by the length of sequences is counted out by the recipe's."""
        recipe = self.costs.recipe(entry, entry.options)
        known = {f.name for f in fields(METHODS.get(entry.method))}
        length = {"seq_len": recipe.data.seq_len} if "seq_len" in known else {}
        return Design(length | entry.options, recipe.train.steps)

    def _model(self, entry: Entry) -> Design:
        goals = [goal for goal in self._goals(entry) if goal.knob != "steps"]
        if entry.options.get(_width(entry)) is not None:
            goals = [goal for goal in goals if goal.knob != "width"]
        return self._solver(entry).solve(
            self._start(entry), {goal: self._target(entry, goal) for goal in goals}
        )

    def _measure(self, entries: list[Entry]) -> None:
        timed = [e for e in entries if any(goal.quantity == "wall_clock" for goal in self._goals(e))]
        recipes = [self.costs.recipe(e, self.designs[e.key].options) for e in timed]
        baseline = self.costs.recipe(self.base, self.designs[self.base.key].options)
        found = self.calibrator.clocks(recipes, baseline) if timed else []
        self.clocks |= {entry.key: clock for entry, clock in zip(timed, found, strict=True)}

    def _solve_steps(self, entry: Entry, design: Design) -> None:
        targets = {goal: self._target(entry, goal) for goal in self._goals(entry)}
        asked = {goal: target for goal, target in targets.items() if goal.knob == "steps"}
        if "steps" in entry.recipe.get("train", {}):
            asked = {}
        if entry.tokens_per_param is not None:
            cost = self.costs.account(entry, design.options)
            asked[Goal("tokens", "steps")] = entry.tokens_per_param * cost.total_params
        solver = self._solver(entry)
        design = self.designs[entry.key] = solver.solve(design, asked)
        residuals = solver.residuals(design, targets | asked)
        clock = self.clocks.get(entry.key)
        matched = Matched(
            dict(design.options),
            self.costs.account(entry, design.options),
            max(residuals.values(), key=abs) if residuals else None,
            design.steps,
            self.costs.tokens(entry, design.steps),
            residuals,
            None if clock is None else clock.spread,
            self._unique_tokens(entry),
        )
        self._check(entry, matched)
        self.solved[entry.key] = matched

    # -- goals -------------------------------------------------------------------------------------------
    def _goals(self, entry: Entry) -> tuple[Goal, ...]:
        """The reference, which sets the total of the others, is not asked for it itself where it has another goal."""
        budget = self.grid.budget(entry)
        if entry.key == self.grid.reference and len(budget.goals) == 2:
            return tuple(goal for goal in budget.goals if goal.against != "reference")
        return budget.goals

    def _target(self, entry: Entry, goal: Goal) -> float:
        """In the yardstick's own quantity: what the baseline has, or the total parameters of the reference."""
        if goal.quantity == "wall_clock":
            return self.clocks[entry.key].baseline_seconds_per_step * self.designs[self.base.key].steps
        yardstick = self.base
        if goal.against == "reference" and self.grid.reference in self.designs:
            reference = self.grid.entry(self.grid.reference)
            # Sized by the baseline's total itself, the reference adds nothing but its own residual.
            if "total_params" not in [own.quantity for own in self._goals(reference)]:
                yardstick = reference
        return self.costs.count(yardstick, goal.quantity, self.designs[yardstick.key])

    def _unique_tokens(self, entry: Entry) -> int | None:
        """What the baseline sees, where the budget says so."""
        if not self.grid.budget(entry).same_data:
            return None
        limit = self.costs.recipe(self.base, self.base.options).data.unique_tokens
        tokens = self.solved[self.base.key].tokens
        return tokens if limit is None else min(limit, tokens)

    # -- solving -----------------------------------------------------------------------------------------
    def _solver(self, entry: Entry) -> Solver:
        recipe = self.costs.recipe(entry, entry.options)
        method, width = create(entry.method, entry.options), _width(entry)
        usual = {width: max(2, (recipe.backbone.intermediate_size or 4 * recipe.backbone.hidden_size))}
        if entry.method != "dense":
            usual |= {"num_experts": method.num_experts, "top_k": method.top_k}
            usual[width] = max(2, usual[width] // method.top_k)
        open_shared = not entry.options.get("shared_hidden")
        return Solver(
            entry.key,
            lambda quantity, design: self._count(entry, quantity, design),
            lambda options: _accepts(entry.method, options),
            lambda options: open_shared and self.costs.has_shared_experts(entry, options),
            width,
            usual,
            recipe.train.warmup_steps,
            self.grid.tolerance if entry.tolerance is None else entry.tolerance,
        )

    def _count(self, entry: Entry, quantity: Quantity, design: Design) -> float:
        if quantity == "wall_clock":
            return self.clocks[entry.key].seconds_per_step * design.steps
        return self.costs.count(entry, quantity, design)

    def _check(self, entry: Entry, matched: Matched) -> None:
        """Schedules have their say about steps, and data about how much of it there is."""
        try:
            recipe = matched.recipe(self.grid, entry, self.grid.seeds[0])
            data = to_json(to_dict(recipe.data))
            if matched.unique_tokens is not None and data not in self._repeatable:
                load_data(recipe)
                self._repeatable.add(data)
        except ConfigError as error:
            raise ConfigError(f"entry {entry.key!r}: {error}") from None


def _width(entry: Entry) -> str:
    """The option that holds the hidden width of the experts, or of the dense FFN."""
    return "hidden" if entry.method == "dense" else "expert_hidden"


def _accepts(method: str, options: Mapping[str, Any]) -> bool:
    try:
        create(method, options)
    except ConfigError:
        return False
    return True
