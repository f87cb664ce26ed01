"""Fit a scaling law to runs: Huber loss on the logarithm of the loss, from a grid of starts.

As in arXiv 2203.15556, Sec. 3.3 (and 2404.02852, 2505.20225), but the search moves the *size of each term* at the
middle of the runs instead of raw coefficients.  Raw coefficients and exponents are so strongly tied to each other that
optimisers stay where they start: two of the coefficients printed in 2505.20225 are powers of e from its grid of starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.bench.scaling.forms import Array, Form, ScalingLaw, check_constants
from libmoe.bench.scaling.runs import Runs
from libmoe.core.errors import ConfigError, DataError

DELTA = 1e-3
"""Where the Huber loss turns from square to absolute, in units of log loss (all three papers)."""
POLISHED = 6
"""Starts that are followed to their end; the others are only looked at."""
SHARPENING = (30.0, 10.0, 3.0, 1.0)
"""The Huber losses on the way, in units of the last one's delta."""
SMALLEST, LARGEST = -12.0, 4.0
"""Bounds of the logarithm of a term over the mean loss."""
TIED = 0.999
"""Correlation of the logarithms of two sizes above which their effects cannot be told apart."""


@dataclass(frozen=True)
class Goodness:
    """How well a law fits the runs it was fitted to.

    Attributes:
        huber: mean Huber loss, what the fit minimises.
        rmsle: root of the mean squared error of the log loss; about the relative error.
        r2: share of the variance of the log loss that is explained.
        worst: largest relative error of a run.
        seed_noise: standard deviation of the log loss between runs of one configuration; ``None`` without repeats.
            An ``rmsle`` well above it says that the form misses something that is no chance.
    """

    huber: float
    rmsle: float
    r2: float
    worst: float
    seed_noise: float | None


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        fixed: constants that were given and not fitted.
        at_bound: constants that the runs do not determine: the fit ended at a bound of theirs.
    """

    law: ScalingLaw
    runs: Runs
    goodness: Goodness
    fixed: Mapping[str, float] = field(default_factory=dict)
    at_bound: tuple[str, ...] = ()
    delta: float = DELTA

    @property
    def constants(self) -> Mapping[str, float]:
        return self.law.constants

    def predict(self, params: ArrayLike, tokens: ArrayLike, experts: ArrayLike = 1) -> Array:
        return self.law.predict(params, tokens, experts)


def fit(form: Form, runs: Runs, *, fixed: Mapping[str, float] | None = None, delta: float = DELTA) -> Fit:
    """Fit ``form`` to ``runs``; the same runs always give the same constants.

    Args:
        fixed: constants that are known, by name.

    Raises:
        DataError: too few configurations, or sizes that do not vary enough to tell the constants.
        ConfigError: ``fixed`` names no constant of the form, or has an impossible value.
    """
    fixed = dict(fixed or {})
    check_fixed(form, fixed)
    check_design(form, runs, fixed)
    problem = Problem(form, runs, fixed, delta)
    found = min((problem.polish(start) for start in problem.starts()), key=problem.objective)
    return problem.result(found)


def check_fixed(form: Form, fixed: Mapping[str, float]) -> None:
    check_constants(form, fixed)
    bounds = {e.name: (e.low, e.high) for e in form.exponents}
    for name, value in fixed.items():
        low, high = bounds.get(name, (0.0, math.inf))
        if not low <= value <= high:
            raise ConfigError(
                f"constant {name} of law {form.name!r} must be in {low:g}..{high:g}, got {value:g}"
            )


def check_design(form: Form, runs: Runs, fixed: Mapping[str, float], spare: int = 1) -> None:
    """Refuse runs that cannot determine the free constants of ``form``.

    Args:
        spare: configurations that are needed beyond one for each constant.

    Raises:
        DataError: one line that says what is missing.
    """
    free = len(form.constants) - len(fixed)
    if runs.configs < free + spare:
        raise DataError(
            f"{runs.configs} configurations cannot determine the {free} free constants of law {form.name!r}; "
            f"it needs at least {free + spare}, seeds not counted"
        )
    logs = {}
    for size, what, array in (
        ("N", "active parameters", runs.params_R),
        ("D", "tokens", runs.tokens_R),
        ("E", "experts", runs.experts_R),
    ):
        if size not in form.effects:
            continue
        if np.isnan(array).any():
            raise DataError(
                f"law {form.name!r} needs the number of experts of every run; add num_experts to the rows"
            )
        levels = len(np.unique(np.round(np.log(array), 2)))
        needed = 1 + sum(name not in fixed for name in form.effects[size])
        if levels < needed:
            raise DataError(
                f"law {form.name!r} needs runs at {needed} or more different numbers of {what}, got {levels}"
            )
        logs[what] = np.log(array)
    for (a, x), (b, y) in itertools.combinations(logs.items(), 2):
        tie = float(np.corrcoef(x, y)[0, 1])
        if abs(tie) > TIED:
            raise DataError(
                f"{a} and {b} change together (correlation of logarithms {tie:.3f}), so their effects cannot be told "
                "apart; add runs that change one of them alone"
            )
    if np.ptp(np.log(runs.loss_R)) < 1e-9:
        raise DataError("all runs have the same loss; there is nothing to fit")


class Problem:
    """The fit of one form to one set of runs, as numbers an optimiser moves.

    A point holds the free exponents (or their logarithms), then the logarithms of the free terms' typical size over
    the mean loss.
    """

    def __init__(self, form: Form, runs: Runs, fixed: Mapping[str, float], delta: float) -> None:
        self.form, self.runs, self.fixed, self.delta = form, runs, dict(fixed), delta
        self.sizes = (runs.params_R, runs.tokens_R, np.nan_to_num(runs.experts_R, nan=1.0))
        self.target_R = np.log(runs.loss_R)
        self.middle = float(self.target_R.mean())
        self.exponents = [e for e in form.exponents if e.name not in fixed]
        self.coefficients = [name for name in form.coefficients if name not in fixed]
        self.columns = [form.coefficients.index(name) for name in self.coefficients]
        low = [math.log(e.low) if e.log else e.low for e in self.exponents]
        high = [math.log(e.high) if e.log else e.high for e in self.exponents]
        self.low = np.array(low + [SMALLEST] * len(self.coefficients))
        self.high = np.array(high + [LARGEST] * len(self.coefficients))

    def _exponents(self, point: Array) -> Array:
        """All exponents of points ``[..., constants]``, as ``[exponents, ..., 1]``."""
        free = iter(np.moveaxis(point, -1, 0))
        values = []
        for exponent in self.form.exponents:
            if exponent.name in self.fixed:
                values.append(np.full(point.shape[:-1], self.fixed[exponent.name]))
            else:
                value = next(free)
                values.append(np.exp(value) if exponent.log else value)
        return np.stack(values)[..., None]

    def _terms(self, point: Array) -> tuple[Array, Array]:
        """Log terms of coefficient 1 with the factor in, over the mean loss, and their means over the runs."""
        terms, factor = self.form.terms(self._exponents(point), *self.sizes)
        terms = terms + (factor - self.middle)[..., None]
        return terms, terms.mean(-2)

    def _log_coefficients(self, point: Array, means: Array) -> Array:
        with np.errstate(divide="ignore"):  # a coefficient may be fixed at zero
            known = np.log([self.fixed.get(name, 1.0) for name in self.form.coefficients])
        logs = np.broadcast_to(known, means.shape).copy()
        logs[..., self.columns] = point[..., len(self.exponents) :] - means[..., self.columns]
        return logs

    def _parts(self, point: Array) -> Array:
        """What each term adds to the loss of each run, over the mean loss."""
        terms, means = self._terms(point)
        return np.exp(terms + self._log_coefficients(point, means)[..., None, :])

    def residuals(self, point: Array) -> Array:
        return np.log(self._parts(point).sum(-1)) + self.middle - self.target_R

    def jacobian(self, point: Array) -> Array:
        """Exact for the coefficients, by central differences for the few exponents."""
        parts = self._parts(point)
        sizes = parts[:, self.columns] / parts.sum(1, keepdims=True)
        moved = len(self.exponents)
        if not moved:
            return sizes
        step = 1e-6 * (self.high - self.low)[:moved]
        steps = np.pad(np.diag(step), ((0, 0), (0, len(point) - moved)))
        ahead, behind = self.residuals(np.stack([point + steps, point - steps]))
        return np.hstack([((ahead - behind) / (2 * step[:, None])).T, sizes])

    def objective(self, point: Array) -> float:
        return huber(self.residuals(point), self.delta)

    def starts(self) -> list[Array]:
        """The best points of a grid over the exponents, with the best coefficients at each."""
        from scipy.optimize import nnls

        grid = itertools.product(*([math.log(s) if e.log else s for s in e.starts] for e in self.exponents))
        weight_R = np.exp(self.middle - self.target_R)  # errors count relative to the loss
        known = np.array([self.fixed.get(name, 0.0) for name in self.form.coefficients])
        ranked: list[tuple[float, int, Array]] = []
        for exponents in grid:
            terms, means = self._terms(np.array(exponents))
            rest_R = 1.0 - (np.exp(terms) @ known) * weight_R
            columns = np.exp(terms - means)[:, self.columns] * weight_R[:, None]
            sizes = nnls(columns, rest_R)[0] if self.columns else np.zeros(0)
            # A term that is left out could never come back: its logarithm has no slope there.
            point = np.array([*exponents, *np.log(np.maximum(sizes, 1e-3))])
            ranked.append((self.objective(point), len(ranked), point))
        return [point for *_, point in sorted(ranked, key=lambda r: r[:2])[:POLISHED]]

    def polish(self, start: Array) -> Array:
        """Follow a start down: squares first, which are smooth, then ever sharper Huber losses."""
        return self.sharpen(self.descend(start, "linear"), SHARPENING)

    def sharpen(
        self, point: Array, widths: Sequence[float], tolerance: float = 1e-10, most: int = 200
    ) -> Array:
        """Minimise Huber losses with ``widths`` times the delta, one from the end of the other.

        Runs beyond the delta have no curvature, so a sharp loss begun far from its minimum stops on the way.
        """
        for width in widths:
            point = self.descend(point, "huber", width * self.delta, tolerance, most)
        return point

    def descend(
        self, start: Array, loss: str, delta: float = DELTA, tolerance: float = 1e-10, most: int = 200
    ) -> Array:
        """The point that ``scipy.optimize.least_squares`` reaches under ``loss`` with ``most`` evaluations."""
        from scipy.optimize import least_squares

        if not len(start):
            return start
        return least_squares(
            self.residuals,
            np.clip(start, self.low + 1e-9, self.high - 1e-9),
            self.jacobian,
            (self.low, self.high),
            ftol=tolerance,
            xtol=tolerance,
            gtol=1e-12,
            x_scale="jac",
            loss=loss,
            f_scale=delta,
            max_nfev=most,
        ).x

    def point(self, law: ScalingLaw) -> Array:
        """Where ``law`` is, from which another fit can begin."""
        exponents = [law.constants[e.name] for e in self.exponents]
        logged = np.array([math.log(x) if e.log else x for x, e in zip(exponents, self.exponents)])
        means = self._terms(logged)[1][self.columns]
        with np.errstate(divide="ignore"):
            sizes = np.log([law.constants[name] for name in self.coefficients]) + means
        return np.clip(np.concatenate([logged, sizes]), self.low, self.high)

    def constants(self, point: Array) -> dict[str, float]:
        exponents = self._exponents(point)[:, 0]
        coefficients = np.exp(self._log_coefficients(point, self._terms(point)[1]))
        return dict(zip(self.form.constants, map(float, [*exponents, *coefficients]))) | self.fixed

    def result(self, point: Array) -> Fit:
        names = [e.name for e in self.exponents] + self.coefficients
        reach = 1e-4 * (self.high - self.low)
        stuck = (point < self.low + reach) | (point > self.high - reach)
        law = ScalingLaw(self.form, self.constants(point))
        at_bound = tuple(name for name, bad in zip(names, stuck) if bad)
        return Fit(law, self.runs, goodness(law, self.runs, self.delta), self.fixed, at_bound, self.delta)


def huber(residual_R: Array, delta: float = DELTA) -> float:
    """Mean Huber loss: half the square up to ``delta``, linear beyond."""
    size_R = np.abs(residual_R)
    return float(np.where(size_R <= delta, 0.5 * size_R**2, delta * (size_R - 0.5 * delta)).mean())


def goodness(law: ScalingLaw, runs: Runs, delta: float = DELTA) -> Goodness:
    """How well ``law`` describes ``runs``."""
    target_R = np.log(runs.loss_R)
    experts_R = np.nan_to_num(runs.experts_R, nan=1.0)
    residual_R = np.log(law.predict(runs.params_R, runs.tokens_R, experts_R)) - target_R
    spread = float(np.square(target_R - target_R.mean()).sum())
    return Goodness(
        huber=huber(residual_R, delta),
        rmsle=float(np.sqrt(np.square(residual_R).mean())),
        r2=1 - float(np.square(residual_R).sum()) / spread if spread else math.nan,
        worst=float(np.abs(np.expm1(residual_R)).max()),
        seed_noise=_seed_noise(target_R, runs.config_R),
    )


def _seed_noise(target_R: Array, config_R: NDArray[np.int64]) -> float | None:
    repeats = [target_R[config_R == c] for c in np.unique(config_R)]
    free = sum(len(group) - 1 for group in repeats)
    squares = sum(float(np.square(group - group.mean()).sum()) for group in repeats)
    return math.sqrt(squares / free) if free else None
