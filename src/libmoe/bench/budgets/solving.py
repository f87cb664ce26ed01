"""From targets to options and steps: one knob for one quantity, two for two."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from libmoe.bench.budgets.quantities import Goal, Knob, Quantity, words
from libmoe.bench.budgets.search import LARGEST, nearest_integer
from libmoe.core.errors import ConfigError

REACH = 2
"""So far may the number of active experts move where two quantities of the model must agree."""


@dataclass(frozen=True)
class Design:
    """What a solver decides of an entry: the method's options and the optimiser steps."""

    options: Mapping[str, Any]
    steps: int

    def with_options(self, **options: Any) -> Design:
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True)
class Solver:
    """Meets the goals of one entry.

    Attributes:
        name: the entry, for messages.
        count: the value of a quantity for a design; exact, so that equal designs have equal values.
        accepts: whether the method takes these options.
        shares: whether it has, at these options, shared experts whose width (``shared_hidden``) is free.
        width: the option that holds the hidden width of the experts, or of the dense FFN.
        usual: the method's own ``num_experts``, ``top_k`` and first guess of the width; without experts only that.
        warmup_steps: a run must be longer.
        tolerance: largest mismatch that is no error, as a share of the target.
    """

    name: str
    count: Callable[[Quantity, Design], float]
    accepts: Callable[[Mapping[str, Any]], bool]
    shares: Callable[[Mapping[str, Any]], bool] = lambda options: False
    width: str = "expert_hidden"
    usual: Mapping[str, int] = field(default_factory=dict)
    warmup_steps: int = 0
    tolerance: float = 0.01

    def solve(self, design: Design, targets: Mapping[Goal, float]) -> Design:
        """The design that meets the targets; what concerns the model comes before steps, which depend on it.

        Raises:
            ConfigError: a target is out of reach; the line names the nearest value that is not.
        """
        model = {goal: target for goal, target in targets.items() if goal.knob != "steps"}
        if len(model) == 2:
            design = self._two(design, model)
        for goal, target in model.items() if len(model) == 1 else ():
            design = self._one(design, goal, target)
        for goal, target in targets.items():
            if goal.knob == "steps":
                design = self._steps(design, goal, target)
        self._check(design, targets)
        return design

    def residuals(self, design: Design, targets: Mapping[Goal, float]) -> dict[str, float]:
        """Mismatch of each quantity as a share of its target."""
        return {
            goal.quantity: self.count(goal.quantity, design) / target - 1 for goal, target in targets.items()
        }

    # -- one quantity ------------------------------------------------------------------------------------
    def _one(self, design: Design, goal: Goal, target: float) -> Design:
        option, low = self._option(goal.knob, design)

        def value(x: int) -> float:
            return self.count(goal.quantity, design.with_options(**{option: x}))

        found = nearest_integer(value, target, low, self.usual[option])
        if found == low and value(low) > target * (1 + self.tolerance):
            raise ConfigError(
                f"entry {self.name!r}: even {option}={low} has {value(low):.4g} {words(goal.quantity)}, above the "
                f"budget of {target:.4g}; use fewer or smaller shared parts"
            )
        if found == LARGEST and value(found) == value(low):
            raise ConfigError(
                f"entry {self.name!r}: {goal.quantity} does not grow with {option}; set match: none for it"
            )
        near = design.with_options(**{option: found})
        off = abs(value(found) / target - 1) > self.tolerance
        return (
            self._settled(near, goal, target)
            if off and option == self.width and self.shares(near.options)
            else near
        )

    def _settled(self, near: Design, goal: Goal, target: float) -> Design:
        """All experts have one width, which is coarse; the width of the shared ones evens it out."""
        for width in (near.options[self.width], near.options[self.width] - 1):
            design = near.with_options(**{self.width: width})

            def value(shared: int, design: Design = design) -> float:
                return self.count(goal.quantity, design.with_options(shared_hidden=shared))

            if width and value(1) <= target:
                return design.with_options(shared_hidden=nearest_integer(value, target, 1, width))
        return near

    def _option(self, knob: Knob, design: Design) -> tuple[str, int]:
        """The option that a knob turns, and its least value."""
        if knob == "width":
            return self.width, 1
        if "num_experts" not in self.usual:
            raise ConfigError(f"entry {self.name!r}: it has no number of experts to solve; use solve: width")
        return "num_experts", int(design.options.get("top_k", self.usual["top_k"]))

    def _steps(self, design: Design, goal: Goal, target: float) -> Design:
        each = self.count(goal.quantity, replace(design, steps=1))
        steps, least = max(1, round(target / each)), self.warmup_steps + 1
        if steps < least:
            raise ConfigError(
                f"entry {self.name!r}: {target:.4g} {words(goal.quantity)} are worth {steps} steps, but "
                f"train.warmup_steps={self.warmup_steps} needs at least {least}, which are {least * each:.4g}; "
                "shorten the warm-up or raise the budget"
            )
        return replace(design, steps=steps)

    # -- two quantities ----------------------------------------------------------------------------------
    def _two(self, design: Design, targets: Mapping[Goal, float]) -> Design:
        """Two quantities of the model at once: the width spreads what the number of experts cannot settle."""
        one, two = targets
        if one.knob == two.knob:
            return self._balanced(design, targets)

        def worst(tried: Design) -> float:
            return max(map(abs, self.residuals(tried, targets).values()))

        low = self._option("experts", design)[1]
        best = None
        for top_k in sorted(range(max(1, low - REACH), low + REACH + 1), key=lambda k: abs(k - low)):
            start = design if top_k == low else design.with_options(top_k=top_k)
            if top_k != low and not self.accepts(
                {**start.options, "num_experts": max(top_k, self.usual["num_experts"])}
            ):
                continue
            tried = self._experts(start, targets, top_k)
            if best is None or worst(tried) < worst(best):
                best = tried
            if worst(best) <= self.tolerance:
                break
        assert best is not None
        return best

    def _experts(self, design: Design, targets: Mapping[Goal, float], top_k: int) -> Design:
        """More experts move the total against what is active; the width moves both."""

        @functools.cache
        def at(num_experts: int) -> Design:
            return self._balanced(design.with_options(num_experts=num_experts), targets)

        def gap(num_experts: int) -> float:
            first, second = self.residuals(at(num_experts), targets).values()
            return sign * (first - second)

        low, start = top_k, max(top_k + 1, self.usual["num_experts"])
        sign = 1.0
        if gap(start) < gap(low):  # whichever of the two grows with the experts
            sign = -1.0
        return at(nearest_integer(gap, 0.0, low, start))

    def _balanced(self, design: Design, targets: Mapping[Goal, float]) -> Design:
        """The width at which one quantity is as far below its target as the other is above."""

        def total(width: int) -> float:
            return sum(self.residuals(design.with_options(**{self.width: width}), targets).values())

        start = int(design.options.get(self.width) or self.usual[self.width])
        return design.with_options(**{self.width: nearest_integer(total, 0.0, 1, start)})

    # -- what is left ------------------------------------------------------------------------------------
    def _check(self, design: Design, targets: Mapping[Goal, float]) -> None:
        residuals = self.residuals(design, targets)
        for goal, target in targets.items():
            if abs(residuals[goal.quantity]) > self.tolerance:
                self._refuse(design, goal, target, max(map(abs, residuals.values())))

    def _refuse(self, design: Design, goal: Goal, target: float, worst: float) -> NoReturn:
        value = self.count(goal.quantity, design)
        if goal.knob == "steps":
            at, more = [f"steps={design.steps}"], replace(design, steps=design.steps + 1)
        else:
            at = [
                f"{o}={v}"
                for o in (self.width, "num_experts", "top_k")
                if (v := design.options.get(o)) is not None
            ]
            option = self._option(goal.knob, design)[0]
            more = design.with_options(**{option: design.options[option] + 1})
        one = self.count(goal.quantity, more) - value
        raise ConfigError(
            f"entry {self.name!r}: the nearest to {target:.4g} {words(goal.quantity)} is {value:.4g} "
            f"({value / target - 1:+.2%}) with {', '.join(at)}, where one more is worth {one / target:.2%}, outside "
            f"the tolerance of {self.tolerance:.2%}; set tolerance: {math.ceil(worst * 1000) / 1000:g} to allow it, or "
            "another budget"
        )
