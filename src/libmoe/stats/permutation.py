"""The sign-flip test: were the two sides of every pair exchangeable, how often would the sum be as far from zero?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.stats.clusters import numbered

ENUMERATED = 16
"""Up to so many differences all signs are tried."""
LATTICE = 1 << 15
"""Up to so many steps between the smallest and the largest sum their distribution is computed exactly."""
BATCH = 1 << 22
"""Random numbers held in memory at a time."""

SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
"""The eight signs that a byte stands for."""

Floats = NDArray[np.float64]


class SignFlip(NamedTuple):
    """``exact``: the p-value comes from all signs; otherwise from random ones."""

    p_value: float
    exact: bool


def sign_flip(differences: Floats, resamples: int = 9999, seed: int = 0) -> SignFlip:
    """Two-sided p-value of "each of the independent ``differences`` might as well have the other sign".

    It is exact where that can be computed: for differences that are multiples of the smallest one (all right-or-wrong
    scores), whose sum has a distribution made of binomials, and for few differences.  With differences of one size it
    is McNemar's exact test.  Otherwise random signs are drawn, and the observed ones count as one more draw, without
    which the test would be too bold (Phipson & Smyth 2010).

    Args:
        differences: one sum per cluster.
        resamples, seed: of the random signs.

    Sources: Fisher 1935, section 21; McNemar 1947.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not values.size:
        return SignFlip(1.0, True)
    steps = values / np.abs(values).min()
    whole = np.rint(steps)
    if np.abs(steps - whole).max() < 1e-9 and _fits(np.abs(whole)):
        return SignFlip(_lattice(whole.astype(np.int64)), True)
    if values.size <= ENUMERATED:
        return SignFlip(_enumerated(values), True)
    return SignFlip(_sampled(values, resamples, seed), False)


def _fits(sizes: Floats) -> bool:
    return bool(sizes.sum() <= LATTICE or (sizes == 1).all())


def _lattice(whole: NDArray[np.int64]) -> float:
    """Exact, from the distribution of ``sum of the positive ones``, size by size a binomial."""
    from scipy.stats import binom

    probability = np.ones(1)
    for size, count in zip(*np.unique(np.abs(whole), return_counts=True), strict=True):
        one = np.zeros(size * count + 1)
        one[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, one)
    total = len(probability) - 1
    sums = 2 * np.arange(total + 1) - total
    return min(1.0, float(probability[np.abs(sums) >= abs(int(whole.sum()))].sum()))


def _enumerated(values: Floats) -> float:
    """Exact, by trying all signs but those of the first, which only mirror the others."""
    bits = np.arange(1 << (values.size - 1))[:, None] >> np.arange(values.size - 1)
    sums = values[0] + (1.0 - 2.0 * (bits & 1)) @ values[1:]
    return float(np.mean(np.abs(sums) >= _as_far_as(values)))


def _sampled(values: Floats, resamples: int, seed: int) -> float:
    """By random signs, eight of them looked up by one random byte."""
    padded = np.zeros(-(-values.size // 8) * 8)
    padded[: values.size] = values
    table = padded.reshape(-1, 8) @ SIGNS.T
    rows, far = np.arange(len(table)), _as_far_as(values)
    rng = np.random.default_rng(seed)
    beyond, left = 0, resamples
    while left:
        batch = min(left, max(1, BATCH // len(table)))
        drawn = rng.integers(256, size=(batch, len(table)), dtype=np.uint8)
        beyond += int((np.abs(table[rows, drawn].sum(axis=1)) >= far).sum())
        left -= batch
    return (beyond + 1) / (resamples + 1)


def _as_far_as(values: Floats) -> float:
    """The observed distance from zero, less what the order of a sum may change."""
    return float(abs(values.sum()) - 1e-12 * np.abs(values).sum())


def exchange_test(
    difference: Callable[[NDArray[np.bool_]], float],
    clusters: Sequence[Hashable] | int,
    resamples: int = 999,
    seed: int = 0,
) -> float:
    """As :func:`sign_flip`, for a difference that is no mean: whole clusters change sides at random.

    Args:
        difference: what separates the two sides, given which items have changed sides.
        clusters: the cluster of each item, or the number of items when each is its own.
    """
    of = numbered(None, clusters) if isinstance(clusters, int) else numbered(clusters, len(clusters))
    count = int(of.max()) + 1
    observed = abs(difference(np.zeros(of.size, dtype=bool)))
    rng = np.random.default_rng(seed)
    near = observed * (1 - 1e-12)
    inside = sum(abs(difference((rng.random(count) < 0.5)[of])) < near for _ in range(resamples))
    return (resamples - inside + 1) / (resamples + 1)
