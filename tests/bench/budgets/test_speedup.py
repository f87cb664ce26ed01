"""A planted speed-up is recovered, by its interval too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from libmoe.bench.budgets import Curve, compute_speedup
from libmoe.core.errors import DataError

COMPUTE = [4.0**i for i in range(1, 7)]


def law(compute: float) -> float:
    return 1.5 + 3 * compute**-0.2


def noisy(
    compute: list[float], factor: float, seeds: np.ndarray, sigma: float, rng: np.random.Generator
) -> Curve:
    """Losses that ``factor`` times the compute would give; what a seed does to one curve it does to both."""
    noise = rng.normal(0, sigma, (len(compute), len(seeds)))
    return Curve(
        compute, [[law(factor * c) + s + n for s, n in zip(seeds, row)] for c, row in zip(compute, noise)]
    )


def test_power_laws_apart_by_a_factor_have_that_factor_everywhere() -> None:
    dense = Curve(COMPUTE, [[law(c)] for c in COMPUTE])
    found = compute_speedup(dense, Curve(COMPUTE[:5], [[law(4 * c)] for c in COMPUTE[:5]]))
    assert [s.factor for s in found] == pytest.approx([4.0] * 5)
    assert all(s.bound is None and math.isnan(s.low) for s in found)


def test_between_points_the_loss_is_linear_in_log_compute() -> None:
    (found,) = compute_speedup(Curve([1.0, 100.0], [[3.0], [1.0]]), Curve([2.0], [[2.0]]))
    assert found.factor == pytest.approx(5.0)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_interval_holds_the_planted_factor_as_often_as_it_says(factor: float) -> None:
    rng, held, trials = np.random.default_rng(0), 0, 120
    grid = list(np.geomspace(4, 4096, 25))  # close enough that straight lines are the curve
    for trial in range(trials):
        seeds = rng.normal(0, 0.02, 4)
        dense, moe = (noisy(g, f, seeds, 0.002, rng) for g, f in ((grid, 1.0), ([300.0], factor)))
        (found,) = compute_speedup(dense, moe, level=0.9, resamples=200, seed=trial)
        held += found.low <= factor <= found.high
    assert 0.82 <= held / trials <= 0.97  # 0.9, by two and a half standard errors of so many trials


def test_seeds_are_paired() -> None:
    rng = np.random.default_rng(1)
    grid = list(np.geomspace(4, 4096, 12))
    dense = noisy(grid, 1.0, np.array([0.0, 0.05, -0.05]), 0.0, rng)
    moe = noisy([64.0], 2.0, np.array([0.0, 0.05, -0.05]), 0.0, rng)
    swapped = Curve(moe.compute, [moe.loss[0][::-1]])
    (paired,), (crossed,) = compute_speedup(dense, moe), compute_speedup(dense, swapped)
    assert paired.high / paired.low < 1.001 < crossed.high / crossed.low


def test_beyond_the_baseline_only_a_bound_is_known() -> None:
    dense = Curve([1.0, 10.0], [[3.0, 3.1], [2.0, 2.1]])
    better, worse = compute_speedup(dense, Curve([1.0, 0.5], [[1.0, 1.0], [4.0, 4.0]]))[::-1]
    assert (better.bound, better.factor, str(better)) == ("more than", pytest.approx(10.0), "more than 10x")
    assert (worse.bound, worse.factor, str(worse)) == ("less than", pytest.approx(2.0), "less than 2x")
    assert math.isnan(better.low)


@pytest.mark.parametrize(
    ("losses", "target", "says"),
    [
        (
            [3.0, 3.2, 2.0],
            3.5,
            "less than 1x",
        ),  # the first stretch is flat, but the cheapest run was better already
        ([3.0, 2.0, 2.0], 1.9, "more than 100x"),  # so is the last
        ([3.0, 2.0, 2.5], 1.9, "more than 100x"),
        ([3.0, 3.0, 3.0], 2.9, "more than 100x"),
        ([3.0, 3.0, 3.0], 3.1, "less than 1x"),
        ([3.0, 3.0, 3.0], 3.0, "1x"),
        ([3.0, 2.0, 1.0], 3.0, "1x"),
        ([3.0, 2.0, 1.0], 1.0, "100x"),
    ],
)
def test_a_bound_is_never_told_as_a_measurement(losses: list[float], target: float, says: str) -> None:
    dense = Curve([1.0, 10.0, 100.0], [[loss, loss] for loss in losses])
    (found,) = compute_speedup(dense, Curve([1.0], [[target, target]]))
    assert str(found).partition(" (")[0] == says


def test_a_baseline_that_some_seeds_never_bring_there_leaves_the_interval_open() -> None:
    dense = Curve([1.0, 10.0], [[3.0, 2.0], [2.0, 2.0]])
    (found,) = compute_speedup(dense, Curve([1.0], [[2.2, 2.1]]))
    assert found.bound is None and (found.low, found.high) == (0.0, math.inf)


def test_a_flat_or_rising_stretch_does_not_count_as_progress() -> None:
    dense = Curve([1.0, 10.0, 100.0], [[3.0], [3.2], [2.0]])
    (found,) = compute_speedup(dense, Curve([1.0], [[2.5]]))
    assert found.factor == pytest.approx(10**1.5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Curve([1.0, 2.0], [[1.0]]), "a loss for each of its 2 points"),
        (lambda: Curve([1.0, 1.0], [[1.0], [1.0]]), "different positive numbers"),
        (lambda: Curve([1.0], [[math.nan]]), "not finite"),
        (lambda: compute_speedup(Curve([1.0], [[1.0]]), Curve([1.0], [[1.0]])), "at two amounts of compute"),
        (
            lambda: compute_speedup(Curve([1.0, 2.0], [[1.0], [0.5]]), Curve([1.0], [[1.0, 2.0]])),
            "1 and 2 seeds",
        ),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(make, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make()
