"""Paired differences between two methods, with a 95 % interval that says what it covers.

Two methods of one grid are compared on the *same* held-out text and the *same* seeds (a seed fixes the data
order and the initialisation of shared weights), so every statistic here is one of the difference, never of
two separate means.  Two things make such a difference uncertain:

* **which text was held out**: resampled.  With per-window counts the unit is the window, drawn within its
  domain and the same for both methods and all seeds (a cluster bootstrap).  With per-domain numbers alone the
  unit is the domain; the interval then speaks about other domains too and is wider.
* **which seeds were drawn**: resampling two or three seeds cannot measure this (with two it sees half of the
  variance).  The scatter of seeds is therefore pooled over all methods of the grid after each seed's common
  level is removed (the randomised-block analysis of variance, ``(methods - 1)(seeds - 1)`` degrees of
  freedom), and every bootstrap replicate is shifted by a Student-t draw of that scale.  Pooling assumes that
  methods scatter about equally; so the pair's own scatter is used where it is the larger, and a method that
  scatters far more than equal methods would (see :data:`WILD`) is kept out of the pool.

On planted data these intervals cover the truth 94 to 97 times in 100; what breaks them is a pair of which one
method scatters three times as much as all others, with two seeds (85 in 100), and a bootstrap over eight domains
with one seed (90 in 100).

When all methods ran with one seed, nothing is known of the second part: the interval then covers the choice
of text only.  Few units make percentiles too narrow, so deviations are widened by the usual
small-sample factors: that of the variance, ``sqrt(n / df)``, and Student's t over the normal quantile.

Sources: the bootstrap, Efron & Tibshirani 1993.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError

WILD = 0.99
"""A method is not pooled with the others when equal methods would hardly ever scatter so unequally."""

Units = Mapping[str, Any]
"""``{domain: bits per byte}``, or ``{domain: [[bits, bytes], ...]}`` with one pair per held-out window."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """``method - baseline`` in bits per byte (negative: the method is better) with its 95 % interval.

    Unpacks as ``mean, low, high``.  Limits and ``p_value`` are NaN when there is nothing to resample.
    ``unit`` is ``"windows"``, ``"domains"`` or ``"runs"`` (only one number each), ``num_units`` their number.
    """

    mean: float
    low: float
    high: float
    per_seed: dict[int, float]
    p_value: float
    unit: str
    num_units: int

    def __iter__(self) -> Iterator[float]:
        return iter((self.mean, self.low, self.high))

    @property
    def seeds(self) -> int:
        return len(self.per_seed)


@dataclass(frozen=True)
class SeedScatter:
    """Seed-to-seed standard deviation of one run (bits per byte), the seeds' common level removed."""

    sigma: float
    degrees_of_freedom: int


def paired_difference(
    rows: Sequence[Mapping[str, Any]],
    method: str,
    baseline: str,
    unit_values: Mapping[tuple[str, int], Units],
    n_boot: int = 2000,
    seed: int = 0,
    *,
    equal_domains: bool = False,
) -> Difference:
    """Compare ``method`` with ``baseline`` on the seeds that both finished.

    Args:
        rows: finished runs (``method``, ``seed``, ``bits_per_byte``) of the *whole* grid, because the scatter
            of seeds is estimated from all of them.
        unit_values: per ``(method, seed)`` the held-out units, see :data:`Units`.
        n_boot: bootstrap replicates.
        seed: of the bootstrap's random numbers; equal inputs give equal intervals.
        equal_domains: weigh every domain alike instead of by its bytes (windows only).

    Raises:
        DataError: no common seed, or the two methods were not evaluated on the same units.
    """
    seeds = sorted({s for m, s in unit_values if m == method} & {s for m, s in unit_values if m == baseline})
    if not seeds:
        raise DataError(f"{method!r} and {baseline!r} finished no common seed; run both with the same seeds")
    gain_SU, size_U, stratum_U, unit = _paired_units(seeds, method, baseline, unit_values, equal_domains)
    per_seed = gain_SU.sum(axis=1) / size_U.sum()

    rng = np.random.default_rng(seed)
    draws = _resampled_means(gain_SU.mean(axis=0), size_U, stratum_U, n_boot, rng)
    error, freedom = _seed_error(rows, method, baseline, per_seed)
    if freedom:
        draws = draws + error * rng.standard_t(freedom, n_boot)
    low, high, p_value = _interval(draws) if freedom or len(size_U) > 1 else (math.nan, math.nan, math.nan)
    by_seed = {s: float(d) for s, d in zip(seeds, per_seed, strict=True)}
    return Difference(float(per_seed.mean()), low, high, by_seed, p_value, unit, len(size_U))


def seed_scatter(rows: Sequence[Mapping[str, Any]]) -> SeedScatter | None:
    """Pool the seed-to-seed scatter over the methods that finished every seed.

    Returns ``None`` when fewer than two methods or two seeds are complete.
    """
    seeds = sorted({row["seed"] for row in rows})
    value = {(row["method"], row["seed"]): float(row["bits_per_byte"]) for row in rows}
    names = sorted({m for m, _ in value if all((m, s) in value for s in seeds)})
    if len(names) < 2 or len(seeds) < 2:
        return None
    table = np.array([[value[m, s] for s in seeds] for m in names])
    variance = (table - np.median(table, axis=0)).var(axis=1, ddof=1)
    if len(table) > 3:  # of three, one cannot be told to be the odd one
        table = table[variance <= _wild_ratio(*table.shape) * np.median(variance)]
    residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    freedom = (len(table) - 1) * (len(seeds) - 1)
    return SeedScatter(math.sqrt(float((residual**2).sum()) / freedom), freedom)


@lru_cache
def _wild_ratio(methods: int, seeds: int) -> float:
    """Return the largest variance over the median one that ``WILD`` of all grids of equal methods stay below."""
    value_GMS = np.random.default_rng(0).normal(size=(4000, methods, seeds))
    variance_GM = (value_GMS - np.median(value_GMS, axis=1, keepdims=True)).var(axis=2, ddof=1)
    return float(np.quantile(variance_GM.max(axis=1) / np.median(variance_GM, axis=1), WILD))


def _seed_error(
    rows: Sequence[Mapping[str, Any]], method: str, baseline: str, per_seed: Floats
) -> tuple[float, int]:
    """Return the standard error of the mean difference that is due to seeds, and its degrees of freedom."""
    seeds, pool = len(per_seed), seed_scatter(rows)
    own = float(per_seed.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    if pool is None:
        return own, seeds - 1
    return max(own, pool.sigma * math.sqrt(2.0 / seeds)), pool.degrees_of_freedom


def _resampled_means(
    gain_U: Floats, size_U: Floats, stratum_U: NDArray[np.int64], n_boot: int, rng: np.random.Generator
) -> Floats:
    """Bootstrap ``sum(gain) / sum(size)`` over units, drawing as many from each stratum as it holds."""
    gain, size = np.zeros(n_boot), np.zeros(n_boot)
    units = freedom = 0
    for stratum in np.unique(stratum_U):
        inside = np.flatnonzero(stratum_U == stratum)
        count_BU = rng.multinomial(len(inside), np.full(len(inside), 1.0 / len(inside)), size=n_boot)
        gain += count_BU @ gain_U[inside]
        size += count_BU @ size_U[inside]
        if len(inside) > 1:
            units, freedom = units + len(inside), freedom + len(inside) - 1
    centre = gain_U.sum() / size_U.sum()
    # The last factor is the first term of the Cornish-Fisher expansion of Student's t at 95 %.
    widen = math.sqrt(units / freedom) * (1.0 + (1.96**2 + 1.0) / (4.0 * freedom)) if freedom else 1.0
    return centre + widen * (gain / size - centre)


def _interval(draws: Floats) -> tuple[float, float, float]:
    """Return the 2.5 % and 97.5 % percentiles and the two-sided p-value of "no difference"."""
    low, high = np.percentile(draws, [2.5, 97.5])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return float(low), float(high), min(1.0, 2.0 * (beyond + 1) / (len(draws) + 1))


def _paired_units(
    seeds: Sequence[int],
    method: str,
    baseline: str,
    unit_values: Mapping[tuple[str, int], Units],
    equal_domains: bool,
) -> tuple[Floats, Floats, NDArray[np.int64], str]:
    """Return bits gained ``[seeds, units]``, bytes ``[units]``, stratum ``[units]`` and the unit's name."""
    reference = unit_values[baseline, seeds[0]]
    domains = sorted(reference)
    by_domain = all(np.ndim(value) == 0 for value in reference.values())
    runs = [(name, at) for name in (method, baseline) for at in seeds]
    tables = {run: _tables(domains, unit_values[run], f"{run[0]!r} seed {run[1]}") for run in runs}
    size_by_domain = [part[:, 1] for part in tables[baseline, seeds[0]]]
    for (name, at), parts in tables.items():
        for domain, part, size in zip(domains, parts, size_by_domain, strict=True):
            if not np.array_equal(part[:, 1], size):
                raise DataError(
                    f"held-out windows of {domain!r} for {name!r} seed {at} are not those of {baseline!r}; "
                    "evaluate both on the same text"
                )
    share = [1.0 / size.sum() if equal_domains and not by_domain else 1.0 for size in size_by_domain]
    gain_SU = np.stack(
        [
            np.concatenate(
                [
                    (ours - theirs)[:, 0] * weight
                    for ours, theirs, weight in zip(
                        tables[method, s], tables[baseline, s], share, strict=True
                    )
                ]
            )
            for s in seeds
        ]
    )
    size_U = np.concatenate([size * weight for size, weight in zip(size_by_domain, share, strict=True)])
    # Domains stand for those one might have chosen, so they form one stratum; windows stay in their domain's.
    strata = [0 if by_domain else place for place in range(len(domains))]
    stratum_U = np.repeat(strata, [len(size) for size in size_by_domain])
    unit = "windows" if not by_domain else "domains" if len(domains) > 1 else "runs"
    return gain_SU, size_U, stratum_U, unit


def _tables(domains: Sequence[str], units: Units, where: str) -> list[Floats]:
    """Return one ``[windows, 2]`` table of bits and bytes per domain (a per-domain value: one byte's bits)."""
    if sorted(units) != list(domains):
        raise DataError(f"{where} has held-out domains {sorted(units)}, its baseline has {list(domains)}")
    values = [np.asarray(units[domain], dtype=np.float64) for domain in domains]
    return [np.array([[float(v), 1.0]]) if v.ndim == 0 else v.reshape(-1, 2) for v in values]
