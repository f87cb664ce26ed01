"""How sure a fitted law is: fits to configurations drawn with replacement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from libmoe.bench.scaling.fit import SHARPENING, Fit, Problem, check_design
from libmoe.bench.scaling.forms import Array, ScalingLaw
from libmoe.core.errors import ConfigError, DataError
from libmoe.stats.clusters import Members, numbered

TRIES = 20
"""Draws that may be thrown away for each one that is kept."""
EVALUATIONS = 60
"""At most so many for each draw; what is still moving then moves along a valley."""


@dataclass(frozen=True)
class Resampled:
    """A fit and the laws that other draws of the runs would have given.

    Attributes:
        laws: one for each draw.
        dropped: draws that could not determine the constants and were replaced by others.
    """

    fit: Fit
    laws: tuple[ScalingLaw, ...]
    level: float = 0.95
    dropped: int = 0

    def interval(self, statistic: Callable[[ScalingLaw], ArrayLike]) -> tuple[Array, Array, Array]:
        """``(value, low, high)`` of anything that follows from a law, its shape kept."""
        draws = np.array([np.asarray(statistic(law), dtype=np.float64) for law in self.laws])
        tail = (1 - self.level) / 2
        low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
        return np.asarray(statistic(self.fit.law), dtype=np.float64), low, high

    def constant(self, name: str) -> tuple[float, float, float]:
        """``(value, low, high)`` of one constant."""
        value, low, high = self.interval(lambda law: law.constants[name])
        return float(value), float(low), float(high)

    def predict(
        self, params: ArrayLike, tokens: ArrayLike, experts: ArrayLike = 1
    ) -> tuple[Array, Array, Array]:
        """``(loss, low, high)`` of the law's own value; a single run scatters around it by the noise of seeds."""
        return self.interval(lambda law: law.predict(params, tokens, experts))


def resample(fitted: Fit, *, draws: int = 299, level: float = 0.95, seed: int = 0) -> Resampled:
    """Fit the law again to configurations drawn with replacement, each with all its runs.

    Percentile intervals of such draws are right for the constants too, which pull at each other: with planted laws
    they hold the truth as often as they say (the tests count it).

    Raises:
        DataError: hardly any draw has enough different configurations to fit.
        ConfigError: ``draws`` or ``level`` is out of range.
    """
    if draws < 20 or not 0 < level < 1:
        raise ConfigError(
            f"intervals need at least 20 draws and a level between 0 and 1, got {draws} and {level:g}"
        )
    runs, form = fitted.runs, fitted.law.form
    members = Members(numbered(runs.config_R.tolist(), len(runs)))
    rng = np.random.default_rng(seed)
    laws: list[ScalingLaw] = []
    dropped = 0
    while len(laws) < draws:
        drawn = runs.take(members.of(rng.integers(members.count, size=members.count)))
        try:
            check_design(form, drawn, fitted.fixed, spare=0)
        except DataError as error:
            dropped += 1
            if dropped > TRIES * draws:
                raise DataError(f"too few configurations for intervals ({members.count}): {error}") from None
            continue
        problem = Problem(form, drawn, fitted.fixed, fitted.delta)
        point = problem.sharpen(problem.point(fitted.law), SHARPENING[1::2], 1e-6, EVALUATIONS)
        laws.append(ScalingLaw(form, problem.constants(point)))
    return Resampled(fitted, tuple(laws), level, dropped)
