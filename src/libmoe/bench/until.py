"""The part of a grid file that says: add seeds until every method is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from libmoe.core.errors import ConfigError
from libmoe.stats import SequentialPlan
from libmoe.stats.sequential import Rule


@dataclass
class Until:
    """Look at the results after so many seeds, and go on with those methods alone that are not decided.

    Attributes:
        looks: numbers of seeds, increasing, from 2 on; the last is the most that any method gets.
        margin: bits per byte; differences smaller than this do not matter.  ``None``: equivalence is never claimed.
        alpha: chance of ever claiming a difference where there is none, over all looks and methods.
        rule: how alpha is spent, see :class:`libmoe.stats.SequentialPlan`.

    Raises:
        ConfigError: looks, margin or alpha that make no sense.
    """

    looks: list[int] = field(default_factory=lambda: [3, 5, 8])
    margin: float | None = None
    alpha: float = 0.05
    rule: Rule = "obrien-fleming"

    def __post_init__(self) -> None:
        try:
            self.plan(1)
        except ConfigError as error:
            raise ConfigError(f"until.{error}") from None

    def plan(self, comparisons: int) -> SequentialPlan:
        """The plan for so many methods that are compared with the baseline."""
        return SequentialPlan(
            tuple(self.looks), self.alpha, self.rule, self.margin, max(1, comparisons), lower_is_better=True
        )

    def seeds(self, given: Sequence[int]) -> list[int]:
        """``given`` and, counting on from the largest, as many more as the last look takes.

        Raises:
            ConfigError: more are given than that.
        """
        more = self.looks[-1] - len(given)
        if more < 0:
            raise ConfigError(
                f"seeds: {len(given)} are given, but the last look of until.looks takes {self.looks[-1]}; "
                "name fewer, or add a look"
            )
        first = max(given) + 1
        return [*given, *range(first, first + more)]
