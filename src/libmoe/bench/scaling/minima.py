"""Where a curve of losses has its minimum: parabolas in a logarithm, with intervals and a verdict.

Two questions have this shape.  At one budget of training FLOPs, which size is best (isoFLOP profiles: arXiv
2203.15556, Sec. 3.2; 2505.20225)?  And which number of tokens per parameter (arXiv 2508.18672)?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from libmoe.bench.scaling.forms import Array
from libmoe.bench.scaling.runs import Runs
from libmoe.core.errors import DataError

Verdict = Literal["minimum", "falls to the edge", "rises from the edge", "undecided"]


@dataclass(frozen=True)
class Minimum:
    """A parabola ``a x^2 + b x + c`` with ``x = ln(size)``, through the mean losses of configurations.

    Attributes:
        size: where the parabola is lowest, ``None`` unless the verdict is a minimum.
        low, high: all sizes at which the slope may be zero; ``None`` where the runs leave that side open.
        loss: at ``size``.
        verdict: ``minimum`` inside the range of the runs; or the losses still fall towards the largest size, or
            rise from the smallest; or the curvature is no more than noise (or there is none left to tell it from).
        parabola: ``a, b, c``.
        sizes, losses: the points.
    """

    size: float | None
    low: float | None
    high: float | None
    loss: float | None
    verdict: Verdict
    parabola: tuple[float, float, float]
    sizes: Array
    losses: Array


def minimum(sizes: ArrayLike, losses: ArrayLike, *, level: float = 0.95) -> Minimum:
    """The minimum of losses over sizes; losses of equal sizes are averaged first.

    The interval is Fieller's (1954): every size whose slope ``2 a x + b`` is within its error of zero.  It is exact
    for parabolas under normal noise, takes what the parabola does not fit as noise, and is open where the curvature
    is not sure.  It needs four sizes; with three the minimum comes without an interval.

    Raises:
        DataError: fewer than three different sizes, or a value that is not finite and positive.
    """
    from scipy.special import stdtrit

    x, y = _means(sizes, losses)
    if len(x) < 3:
        raise DataError(f"a minimum needs at least 3 different sizes, got {len(x)}")
    shift = float(x.mean())
    design = np.vander(x - shift, 3)
    (a, b, c), *_ = np.linalg.lstsq(design, y, rcond=None)
    free = len(x) - 3
    low = high = None
    if free:
        noise = float(np.square(y - design @ (a, b, c)).sum()) / free
        t = float(stdtrit(free, (1 + level) / 2))
        low, high = _fieller(a, b, noise * np.linalg.inv(design.T @ design).astype(np.float64), t)
    vertex = -b / (2 * a) if a > 0 else math.nan
    left, right = float(x[0]) - shift, float(x[-1]) - shift
    verdict: Verdict
    if a > 0 and left <= vertex <= right:
        verdict = "minimum" if low is not None or high is not None or not free else "undecided"
    else:
        falls = a * (left + right) + b < 0  # the slope in the middle of the range
        verdict = "falls to the edge" if falls else "rises from the edge"
    inside = verdict == "minimum"
    return Minimum(
        size=math.exp(vertex + shift) if inside else None,
        low=math.exp(low + shift) if low is not None and inside else None,
        high=math.exp(high + shift) if high is not None and inside else None,
        loss=float(c - b * b / (4 * a)) if inside else None,
        verdict=verdict,
        parabola=(float(a), float(b - 2 * a * shift), float(c - b * shift + a * shift**2)),
        sizes=np.exp(x),
        losses=y,
    )


def _means(sizes: ArrayLike, losses: ArrayLike) -> tuple[Array, Array]:
    """Logarithms of the different sizes, rising, and the mean loss at each."""
    size_R, loss_R = np.asarray(sizes, dtype=np.float64).ravel(), np.asarray(losses, dtype=np.float64).ravel()
    if size_R.shape != loss_R.shape:
        raise DataError(f"{len(size_R)} sizes do not fit {len(loss_R)} losses")
    if not (np.isfinite(size_R) & (size_R > 0) & np.isfinite(loss_R)).all():
        raise DataError("sizes must be positive and losses finite to look for a minimum")
    x, place = np.unique(np.log(size_R), return_inverse=True)
    return x, np.bincount(place, loss_R) / np.bincount(place)


def _fieller(a: float, b: float, covariance: Array, t: float) -> tuple[float | None, float | None]:
    """Ends of ``{x : (2 a x + b)^2 <= t^2 Var(2 a x + b)}``; both ``None`` unless the curvature is surely positive."""
    q2 = 4 * (a * a - t * t * covariance[0, 0])
    q1 = 4 * (a * b - t * t * covariance[0, 1])
    q0 = b * b - t * t * covariance[1, 1]
    under = q1 * q1 - 4 * q2 * q0
    if a <= 0 or q2 <= 0:
        return None, None
    root = math.sqrt(max(under, 0.0))  # the vertex is always inside; rounding may say otherwise
    return (-q1 - root) / (2 * q2), (-q1 + root) / (2 * q2)


@dataclass(frozen=True)
class Profile:
    """The losses of models of different sizes that took the same training FLOPs.

    Attributes:
        experts: of all of them; ``None`` where it is not known.
    """

    flops: float
    experts: int | None
    minimum: Minimum


@dataclass(frozen=True)
class Trend:
    """``size = scale x flops^power`` through the minima of profiles; the interval needs three of them."""

    experts: int | None
    scale: float
    power: float
    low: float | None
    high: float | None

    def at(self, flops: ArrayLike) -> Array:
        return self.scale * np.asarray(flops, dtype=np.float64) ** self.power


def isoflop_profiles(runs: Runs, *, tolerance: float = 0.05, level: float = 0.95) -> list[Profile]:
    """Profiles of all budgets with at least three sizes, by number of experts and then by budget.

    Args:
        tolerance: runs whose training FLOPs follow each other within this share belong to one budget.

    Raises:
        DataError: no budget was spent on three sizes.
    """
    experts_R = np.nan_to_num(runs.experts_R)
    found = []
    for count in np.unique(experts_R):
        of = runs.take(experts_R == count)
        order = np.argsort(of.flops_R, kind="stable")
        gaps = np.diff(np.log(of.flops_R[order])) > math.log1p(tolerance)
        for group in map(of.take, np.split(order, np.flatnonzero(gaps) + 1)):
            if len(np.unique(group.params_R)) >= 3:
                lowest = minimum(group.params_R, group.loss_R, level=level)
                found.append(Profile(float(np.exp(np.log(group.flops_R).mean())), int(count) or None, lowest))
    if not found:
        raise DataError(
            "no budget of training FLOPs was spent on 3 or more sizes; an isoFLOP profile needs runs of different "
            f"active parameters whose FLOPs agree within {tolerance:.0%}"
        )
    return found


def trends(profiles: Sequence[Profile], *, level: float = 0.95) -> list[Trend]:
    """How the best size grows with the budget, for each number of experts with two or more minima."""
    by_experts: dict[int | None, list[tuple[float, float]]] = {}
    for profile in profiles:
        if profile.minimum.size is not None:
            point = (math.log(profile.flops), math.log(profile.minimum.size))
            by_experts.setdefault(profile.experts, []).append(point)
    return [_trend(count, points, level) for count, points in by_experts.items() if len(points) > 1]


def _trend(experts: int | None, points: Sequence[tuple[float, float]], level: float) -> Trend:
    from scipy.special import stdtrit

    x, y = np.array(points).T
    power, constant = np.polyfit(x, y, 1)
    low = high = None
    if len(points) > 2:
        spread = float(np.square(x - x.mean()).sum())
        noise = float(np.square(y - power * x - constant).sum()) / (len(points) - 2)
        reach = float(stdtrit(len(points) - 2, (1 + level) / 2)) * math.sqrt(noise / spread)
        low, high = float(power - reach), float(power + reach)
    return Trend(experts, math.exp(constant), float(power), low, high)
