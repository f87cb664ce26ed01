"""How small a difference a benchmark of so many seeds and held-out units can see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import ConfigError
from libmoe.stats.runs import Units
from libmoe.stats.seeds import pooled_scatter

Floats = NDArray[np.float64]

EXPERIMENTS = 1 << 12
"""Imagined experiments over which power is averaged."""
MOST_SEEDS = 10_000
"""Nobody trains more; a difference that needs more counts as out of reach."""


@dataclass(frozen=True)
class Variability:
    """The two things that make a paired difference uncertain, in the score's own unit.

    The variance of a difference of two methods over S seeds and U units is ``2 seed_sigma^2 / S + unit_sigma^2 / U``,
    the model of :func:`libmoe.stats.crossed_bootstrap` (and so of the report): scatter of seeds pooled over ``methods``
    methods with ``(methods - 1)(S - 1)`` degrees of freedom (but the pair's own where it is larger), and
    units drawn again.

    Attributes:
        seed_sigma: standard deviation of *one run's* score between seeds, what all methods share taken out.
        unit_sigma: standard deviation of the *difference* of two methods between units (clusters of them, if they
            are); 0 where the text is taken as it is.
        methods: how many are in the pool.
    """

    seed_sigma: float
    unit_sigma: float
    methods: int = 2

    def __post_init__(self) -> None:
        if self.methods < 2:
            raise ConfigError(f"methods={self.methods}: a comparison takes at least 2")
        for name in ("seed_sigma", "unit_sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 0 or more")

    def detectable(
        self, seeds: int, units: int, *, comparisons: int = 1, level: float = 0.95, power: float = 0.8
    ) -> Detectable:
        """The smallest true difference that such a benchmark finds with probability ``power``.

        Power is that of the bootstrap of :func:`libmoe.stats.crossed_bootstrap`, which adds a Student-t variate for
        seeds to the draws of text; a t test with the joint standard error, bolder with few seeds, finds it more often.

        Infinite with one seed, which says nothing of others, and with one unit where units matter.

        Args:
            comparisons: claims that are corrected together; the strictest level of Holm's correction is used.

        Raises:
            ConfigError: fewer than one seed, unit or comparison.
        """
        _positive(seeds=seeds, units=units, comparisons=comparisons)
        if self.blind(seeds, units):
            return Detectable(math.inf, seeds, units, power)
        error, bound_K = self._bounds(seeds, units, 1 - (1 - level) / comparisons)
        return Detectable(_effect(error, bound_K, power), seeds, units, power)

    def blind(self, seeds: int, units: int) -> bool:
        """Whether something matters of which there is one only, so that its scatter cannot be known."""
        return bool(self.seed_sigma and seeds < 2) or bool(self.unit_sigma and units < 2)

    def _bounds(self, seeds: int, units: int, level: float) -> tuple[float, Floats]:
        """The true standard error, and how far from zero a difference must lie in each of K equal experiments.

        An experiment estimates its own standard error, from three chi-squares: the pair's scatter of seeds, that of
        the other methods in the pool, and that of units.
        """
        from scipy.special import ndtri

        own, others = seeds - 1, (self.methods - 2) * (seeds - 1)
        rng = np.random.default_rng(0)
        pair_K, rest_K, text_K = (_chi_square(freedom, rng) for freedom in (own, others, units - 1))
        seed_square, unit_square = 2 * self.seed_sigma**2 / seeds, self.unit_sigma**2 / units
        # The larger of the pair's own scatter and the pool's is used, which costs power where seeds are few.
        pooled = (own + others) or 1
        seed_K = seed_square * np.maximum(pair_K / (own or 1), (pair_K + rest_K) / pooled)
        unit_K = unit_square * text_K / max(1, units - 1)
        # As the bootstrap does.
        widen = 1 + (float(ndtri((1 + level) / 2)) ** 2 + 1) / (4 * max(1, units - 1))
        total_K = seed_K + unit_K * widen**2
        share_K = np.divide(seed_K, total_K, out=np.zeros_like(seed_K), where=total_K > 0)
        return math.sqrt(seed_square + unit_square), _reach(share_K, pooled, level) * np.sqrt(total_K)

    def seeds_needed(
        self, effect: float, units: int, *, comparisons: int = 1, level: float = 0.95, power: float = 0.8
    ) -> int | None:
        """The fewest seeds with which ``effect`` is seen; ``None`` if it takes more units instead.

        Raises:
            ConfigError: an effect that is not positive, or as :meth:`detectable`.
        """
        if not effect > 0:
            raise ConfigError(f"effect={effect}: must be more than 0")
        _positive(units=units, comparisons=comparisons)

        def seen(seeds: int) -> bool:
            if self.blind(seeds, units):
                return False
            error, bound_K = self._bounds(seeds, units, 1 - (1 - level) / comparisons)
            return _found(effect, error, bound_K) >= power

        if not seen(MOST_SEEDS):
            return None
        few, enough = 0, MOST_SEEDS
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if seen(middle) else (middle, enough)
        return enough


@dataclass(frozen=True)
class Detectable:
    """The smallest difference ``effect`` that so many seeds and units show with probability ``power``."""

    effect: float
    seeds: int
    units: int
    power: float

    def words(self, reference: float | None = None, unit: str = "unit") -> str:
        """One sentence.

        Args:
            reference: a typical score; given, the difference is a percentage of it.
            unit: what units are called (``window``, ``document``).
        """
        having = f"{_counted(self.seeds, 'seed')} and {_counted(self.units, f'held-out {unit}')}"
        if not math.isfinite(self.effect):
            return f"With {having} no difference can be told from chance."
        size = f"{100 * self.effect / abs(reference):.2g} %" if reference else f"{self.effect:.2g}"
        return f"With {having} you can see a difference of {size} ({100 * self.power:.0f} % of the time)."


def variability(value_MSU: Floats, units: Units | None = None) -> Variability:
    """Estimate both parts from finished runs of M methods with S seeds on U units.

    Args:
        value_MSU: see :func:`libmoe.stats.common_runs`.
        units: weights, clusters and strata; ``None``: every unit by itself, all alike.

    Raises:
        DataError: fewer than two methods or two seeds.
    """
    units = Units(value_MSU.shape[-1]) if units is None else units
    seed = pooled_scatter(units.mean(value_MSU))
    # What a unit does to all methods alike cancels in every difference; of M methods M - 1 are then left.
    taste_MU = value_MSU.mean(axis=1) - value_MSU.mean(axis=(0, 1))
    square = 2 * float(units.squares(taste_MU).sum()) / (len(value_MSU) - 1)
    pooled = seed.freedom // (value_MSU.shape[1] - 1) + 1
    return Variability(seed.sigma, math.sqrt(square * units.clusters), pooled)


def _chi_square(freedom: int, rng: np.random.Generator) -> Floats:
    """Evenly spaced quantiles in random order: less noise than random draws, and the same for all numbers of seeds."""
    from scipy.special import chdtri

    if not freedom:
        return np.zeros(EXPERIMENTS)
    return chdtri(freedom, (rng.permutation(EXPERIMENTS) + 0.5) / EXPERIMENTS)


def _reach(share_K: Floats, freedom: int, level: float) -> Floats:
    """How far ``sqrt(share) t + sqrt(1 - share) z`` stays from zero with probability ``level``.

    t is Student's with ``freedom`` degrees, z a standard normal variate, and they are independent.  Given its
    chi-square, t is normal too; the mixture is summed over chi-squares that lie evenly on the normal scale, far into
    both tails.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr, ndtri

    even = np.linspace(-8, 8, 401)
    weight = np.exp(-(even**2) / 2)
    wide = freedom / (2 * gammaincinv(freedom / 2, ndtr(even)))  # the square of t's scale

    def at(share: float) -> float:
        sigma = np.sqrt(share * wide + 1 - share)

        def beyond(x: float) -> float:
            return float(np.average(ndtr(-x / sigma), weights=weight)) - (1 - level) / 2

        # Itself the answer where all scales are equal.
        most = -float(ndtri((1 - level) / 2)) * float(sigma.max())
        return float(brentq(beyond, 0.0, 1.001 * most))

    grid = np.linspace(0, 1, 33)
    reach: Floats = np.interp(share_K, grid, [at(share) for share in grid])
    return reach


def _effect(error: float, bound_K: Floats, power: float) -> float:
    """The true difference at which estimates with this standard error lie beyond their bounds so often."""
    from scipy.optimize import brentq

    if not error:
        return 0.0
    farthest = float(bound_K.max()) + 10 * error
    return float(brentq(lambda effect: _found(effect, error, bound_K) - power, 0.0, farthest))


def _found(effect: float, error: float, bound_K: Floats) -> float:
    """How often an estimate of a true ``effect`` lies beyond its bound."""
    from scipy.special import ndtr

    if not error:
        return 1.0
    return float((ndtr((effect - bound_K) / error) + ndtr((-effect - bound_K) / error)).mean())


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}={number}: must be at least 1")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
