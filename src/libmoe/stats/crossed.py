"""The difference of two methods whose every seed was scored on the same held-out units, as a bootstrap interval.

Seeds and units cross: a difference would come out otherwise with other seeds, and with other text.  Text is drawn
again, whole clusters at a time and the same ones for all seeds.  Seeds are too few for that (of two, a bootstrap sees
half the variance), so every draw is shifted by a Student-t variate of the seeds' standard error instead.  What varies
by seed *and* text is counted in both parts, which errs on the side of wide; drawing seeds and text independently
counts it three times (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.means import student
from libmoe.stats.permutation import BATCH
from libmoe.stats.runs import Units
from libmoe.stats.seeds import Scatter, seed_error

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossed:
    """A mean paired difference over S seeds and U units.

    Attributes:
        per_seed: the difference with each seed.
        stderr, freedom: standard error of both parts together and its degrees of freedom (Satterthwaite 1946); NaN
            and 0 where there is but one seed and one cluster.
        low, high, p_value: two-sided; NaN likewise.
        covers: what the interval takes into account: ``seeds and units``, ``seeds``, ``units`` or ``nothing``.
    """

    difference: float
    per_seed: tuple[float, ...]
    stderr: float
    freedom: float
    low: float
    high: float
    p_value: float
    clusters: int
    covers: str


def crossed_bootstrap(
    gain_SU: Floats,
    units: Units | None = None,
    *,
    pool: Scatter | None = None,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Crossed:
    """Interval and p-value of a mean difference, over other seeds and other clusters of units.

    Few clusters make percentiles too narrow; deviations are widened by ``sqrt(n / (n - 1))`` and by the first term of
    the Cornish-Fisher expansion of Student's t.

    Args:
        gain_SU: ``b - a`` with each seed on each unit, see :func:`libmoe.stats.common_runs`.
        units: weights, clusters and strata; ``None``: every unit by itself, all alike.
        pool: seed-to-seed scatter of one run, estimated from more methods than these two; ``None``: their own.
        level: of the interval.

    Raises:
        DataError: no seeds or units, or values that are not finite.
    """
    units = checked(gain_SU, units)
    by_t = crossed_t(gain_SU, units, pool=pool, level=level)
    if by_t.covers == "nothing":
        return by_t
    rng = np.random.default_rng(seed)
    draws = _resampled(gain_SU.mean(axis=0), units, resamples, level, rng)
    error = seed_error(np.array(by_t.per_seed), pool)
    if error.freedom:
        draws = draws + error.sigma * rng.standard_t(error.freedom, resamples)
    low, high = map(float, np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return replace(by_t, low=low, high=high, p_value=min(1.0, 2 * (beyond + 1) / (resamples + 1)))


def crossed_t(
    gain_SU: Floats, units: Units | None = None, *, pool: Scatter | None = None, level: float = 0.95
) -> Crossed:
    """As :func:`crossed_bootstrap`, by Student's t of the joint standard error instead of draws.

    For where there are more comparisons than draws could tell apart: p-values have no smallest step.

    Raises:
        DataError: no seeds or units, or values that are not finite.
    """
    from scipy.special import stdtr

    units = checked(gain_SU, units)
    per_seed = units.mean(gain_SU)
    mean = float(per_seed.mean())
    error, text = seed_error(per_seed, pool), float(units.squares(gain_SU.mean(axis=0)))
    stderr, freedom = joined(error, text, units.freedom)
    parts = [name for name, known in (("seeds", error.freedom), ("units", units.freedom)) if known]
    low = high = p_value = math.nan
    if parts:
        half = student(level, freedom) * stderr
        low, high = mean - half, mean + half
        p_value = 2 * float(stdtr(freedom, -abs(mean) / stderr)) if stderr else float(not mean)
    return Crossed(
        difference=mean,
        per_seed=tuple(per_seed.tolist()),
        stderr=stderr,
        freedom=freedom,
        low=low,
        high=high,
        p_value=p_value,
        clusters=units.clusters,
        covers=" and ".join(parts) or "nothing",
    )


def checked(gain_SU: Floats, units: Units | None) -> Units:
    """Return ``units``, or those of single units.

    Raises:
        DataError: no seeds or units, values that are not finite, or units of another number.
    """
    if gain_SU.ndim != 2 or not gain_SU.size or not np.isfinite(gain_SU).all():
        raise DataError(
            f"differences of shape {gain_SU.shape}: must be finite, [seeds, units], and not empty"
        )
    units = Units(gain_SU.shape[1]) if units is None else units
    if units.count != gain_SU.shape[1]:
        raise DataError(f"differences on {gain_SU.shape[1]} units do not fit {units.count} described ones")
    return units


def _resampled(
    gain_U: Floats, units: Units, resamples: int, level: float, rng: np.random.Generator
) -> Floats:
    """Draw as many clusters from each stratum as it holds, and take the mean over their units."""
    centre, sum_C = float(units.mean(gain_U)), units.sums(gain_U)
    if not units.freedom:
        return np.full(resamples, centre)
    drawn = np.concatenate(units.strata)
    gain, size = (np.full(resamples, whole.sum() - whole[drawn].sum()) for whole in (sum_C, units.size_C))
    for places in units.strata:
        share = np.full(len(places), 1 / len(places))
        step = max(1, BATCH // len(places))
        for start in range(0, resamples, step):
            rows = slice(start, min(start + step, resamples))
            count_BC = rng.multinomial(len(places), share, size=rows.stop - start)
            gain[rows] += count_BC @ sum_C[places]
            size[rows] += count_BC @ units.size_C[places]
    normal = student(level, math.inf)
    widen = math.sqrt(len(drawn) / units.freedom) * (1 + (normal**2 + 1) / (4 * units.freedom))
    return centre + widen * (gain / size - centre)


def joined(error: Scatter, text: float, freedom: int) -> tuple[float, float]:
    """Standard error of both parts, and its degrees of freedom (Satterthwaite 1946).

    Args:
        text, freedom: squared standard error of the units' part and its degrees of freedom.
    """
    parts = [(error.sigma**2, error.freedom), (text, freedom)]
    known = [(square, count) for square, count in parts if count]
    if not known:
        return math.nan, 0.0
    total = sum(square for square, _ in known)
    if not total:
        return 0.0, float(sum(count for _, count in known))
    return math.sqrt(total), total**2 / sum(square**2 / count for square, count in known)
