"""Adding seeds until a comparison is decided, with the errors of all looks together under control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from libmoe.core.errors import ConfigError, unknown
from libmoe.stats.spending import anytime_levels, spent_levels

Rule = Literal["obrien-fleming", "pocock", "anytime"]
Verdict = Literal["better", "worse", "equivalent within margin", "go on", "undecided at the last look"]


@dataclass(frozen=True)
class Look:
    """What is known after so many seeds.

    Attributes:
        low, high: an interval that holds at *all* looks together with probability ``1 - alpha`` (a repeated
            confidence interval, Jennison & Turnbull 1989); unbounded where a look may not claim anything yet.
        level: of this look's t test.
        next_seeds: how many seeds the next look takes; ``None`` once decided, or after the last.
    """

    verdict: Verdict
    seeds: int
    difference: float
    low: float
    high: float
    level: float
    next_seeds: int | None


@dataclass(frozen=True)
class SequentialPlan:
    """When to look, and how strictly.

    The default spends alpha as O'Brien & Fleming do: the first looks have two or three seeds, whose scatter is least
    known and whose luck is greatest, so they should stop for the plainest differences only; and the last look is
    left nearly all of alpha, so that having looked costs a few per cent of seeds and no more.  ``pocock`` stops
    sooner for large differences and asks for more seeds for small ones.  ``anytime`` needs no plan at all: seeds may
    be added for ever.  It pays with wide intervals and decides nothing with fewer than
    five seeds.

    Attributes:
        looks: numbers of seeds, increasing, from 2 on; the last is the most there will be.
        alpha: chance of ever claiming a difference where there is none, over all looks and comparisons.
        margin: differences smaller than this do not matter; ``None``: equivalence is never claimed.
        comparisons: methods that are compared under this plan, each at ``alpha / comparisons`` (Bonferroni).
        lower_is_better: of the score that is compared (losses, bits per byte).

    Raises:
        ConfigError: looks, alpha, margin, comparisons or rule that make no sense.
    """

    looks: tuple[int, ...]
    alpha: float = 0.05
    rule: Rule = "obrien-fleming"
    margin: float | None = None
    comparisons: int = 1
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", tuple(self.looks))
        if self.rule not in get_args(Rule):
            raise unknown("rule", self.rule, get_args(Rule))
        if not self.looks or self.looks[0] < 2 or (np.diff(self.looks) <= 0).any():
            raise ConfigError(f"looks={list(self.looks)}: must be increasing numbers of seeds, from 2 on")
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha={self.alpha}: must lie between 0 and 0.5, for instance 0.05")
        if self.margin is not None and not self.margin > 0:
            raise ConfigError(
                f"margin={self.margin}: must be more than 0; leave it out to claim no equivalence"
            )
        if self.comparisons < 1:
            raise ConfigError(f"comparisons={self.comparisons}: must be at least 1")

    def levels(self, looks: Sequence[int] | None = None) -> tuple[float, ...]:
        """The level of each look's two-sided t test; of other ``looks`` than planned, if so it came."""
        looks, alpha = self.looks if looks is None else tuple(looks), self.alpha / self.comparisons
        if self.rule == "anytime":
            return anytime_levels(looks, alpha)
        return spent_levels(looks, self.looks[-1], alpha, self.rule)

    def look(
        self,
        difference: float,
        stderr: float,
        freedom: float,
        seeds: int,
        *,
        before: Sequence[int] | None = None,
    ) -> Look:
        """Judge the difference found with ``seeds`` seeds; a decision once made is to be kept.

        A difference that lies within the margin for certain is called equivalent, even where it is certainly not
        zero.

        Args:
            difference, stderr, freedom: of ``method - baseline``, as :func:`libmoe.stats.crossed_bootstrap` gives.
            before: numbers of seeds of earlier looks, if they were not those planned below ``seeds`` (a run may
                have failed).

        Raises:
            ConfigError: seeds that no look can have.
        """
        if before is None:
            before = [planned for planned in self.looks if planned < seeds]
        path = (*before, seeds)
        most = math.inf if self.rule == "anytime" else self.looks[-1]
        if path[0] < 2 or (np.diff(path) <= 0).any() or seeds > most:
            raise ConfigError(
                f"seeds={seeds} after looks at {list(before)}: must increase, from 2 to {most} at most"
            )
        level = self.levels(path)[-1]
        half = _half_width(level, stderr, freedom)
        low, high = difference - half, difference + half
        later = next((planned for planned in self.looks if planned > seeds), None)
        verdict = self._verdict(low, high, later is None)
        return Look(verdict, seeds, difference, low, high, level, later if verdict == "go on" else None)

    def _verdict(self, low: float, high: float, last: bool) -> Verdict:
        if self.margin is not None and -self.margin < low and high < self.margin:
            return "equivalent within margin"
        if low > 0 or high < 0:
            return "worse" if (low > 0) == self.lower_is_better else "better"
        return "undecided at the last look" if last else "go on"


def _half_width(level: float, stderr: float, freedom: float) -> float:
    """Infinite where the scatter is not known, or no t is large enough."""
    from scipy.special import stdtrit

    if not freedom > 0 or not math.isfinite(stderr) or level <= 0:
        return math.inf
    return -float(stdtrit(freedom, level / 2)) * stderr
