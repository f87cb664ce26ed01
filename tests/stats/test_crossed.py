"""Two methods over seeds and clusters at once: few false alarms wherever the scatter comes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import DataError
from libmoe.stats import Scatter, Units, crossed_bootstrap, crossed_flip, crossed_t, sign_flip

SOURCES = [
    # seeds, clusters, scatter by seed, by cluster, by both
    (6, 40, 1.0, 0.0, 0.1),
    (6, 40, 0.0, 1.0, 0.1),
    (12, 40, 0.5, 1.0, 1.0),
    (5, 12, 0.6, 1.0, 0.3),
]
TRIALS = 400
MOST = scipy.stats.binom.ppf(1 - 5e-5, TRIALS, 0.05)


def gains(
    rng: np.random.Generator, seeds: int, clusters: int, by_seed: float, by_cluster: float, by_both: float
) -> np.ndarray:
    """Three units a cluster, which add a little noise."""
    seed, cluster = by_seed * rng.normal(size=(seeds, 1)), by_cluster * rng.normal(size=clusters)
    sums = seed + cluster + by_both * rng.normal(size=(seeds, clusters))
    return np.repeat(sums, 3, axis=1) + 0.1 * rng.normal(size=(seeds, 3 * clusters))


def thirds(clusters: int) -> Units:
    return Units(3 * clusters, clusters=np.repeat(np.arange(clusters), 3).tolist())


@pytest.mark.parametrize("source", SOURCES)
def test_equal_methods_raise_few_alarms(source: tuple[int, int, float, float, float]) -> None:
    rng = np.random.default_rng(0)
    units = thirds(source[1])
    alarms = np.zeros(3)
    for trial in range(TRIALS):
        gain = gains(rng, *source)
        found = crossed_bootstrap(gain, units, resamples=499, seed=trial)
        flipped = crossed_flip(gain, units, resamples=499, seed=trial)
        alarms += (found.p_value < 0.05, not found.low <= 0 <= found.high, flipped.p_value < 0.05)
    assert (alarms <= MOST).all(), alarms


def test_one_factor_alone_is_fooled_by_the_other() -> None:
    rng = np.random.default_rng(1)
    alarms = np.zeros(3)
    for _ in range(TRIALS):
        found = crossed_flip(gains(rng, 12, 40, 0.5, 1.0, 1.0), thirds(40), resamples=199)
        alarms += np.array(found) < 0.05
    assert alarms[0] <= MOST
    assert alarms[1] > 1.2 * MOST and alarms[2] > 1.2 * MOST


def test_two_seeds_keep_their_level_with_a_pool_and_gain_power_by_it() -> None:
    rng = np.random.default_rng(2)
    alarms, alone, pooled = 0, 0, 0
    for trial in range(TRIALS):
        own = gains(rng, 2, 40, math.sqrt(2) * 0.5, 0.5, 0.1)  # two runs, each with scatter 0.5
        pool = Scatter(0.5 * math.sqrt(rng.chisquare(9) / 9), 9)
        null = crossed_bootstrap(own, thirds(40), pool=pool, resamples=499, seed=trial)
        alarms += null.p_value < 0.05
        alone += crossed_bootstrap(own + 2.0, thirds(40), resamples=499, seed=trial).p_value < 0.05
        pooled += (
            crossed_bootstrap(own + 2.0, thirds(40), pool=pool, resamples=499, seed=trial).p_value < 0.05
        )
    assert alarms <= MOST
    assert pooled > 0.8 * TRIALS > 0.5 * TRIALS > alone


def test_clear_differences_are_found_by_both() -> None:
    gain = gains(np.random.default_rng(3), 8, 40, 0.2, 0.5, 0.5) + 1.0
    assert crossed_bootstrap(gain, thirds(40)).low > 0.5
    assert crossed_flip(gain, thirds(40)).p_value < 0.05
    other = crossed_flip(-gain, thirds(40))
    assert other == crossed_flip(gain, thirds(40))


def test_one_seed_covers_the_text_only_and_six_are_needed_to_flip() -> None:
    gain = np.random.default_rng(4).normal(1, 0.1, size=(6, 30))
    one = crossed_bootstrap(gain[:1])
    assert one.covers == "units" and one.low > 0.9
    assert crossed_flip(gain[:1]).p_value == 1
    assert crossed_flip(gain[:1]).clusters == sign_flip(gain[0]).p_value
    assert crossed_flip(gain[:5]).p_value > 0.05 > crossed_flip(gain).p_value
    assert crossed_bootstrap(gain).covers == "seeds and units"
    assert crossed_bootstrap(gain[:, :1]).covers == "seeds"
    lone = crossed_bootstrap(gain[:1, :1])
    assert lone.covers == "nothing" and math.isnan(lone.p_value) and lone.freedom == 0


def test_seeds_alone_give_the_paired_t_test() -> None:
    gain = np.random.default_rng(5).normal(0.5, 1, size=(7, 1))
    found, theirs = crossed_bootstrap(gain, resamples=40_000), scipy.stats.ttest_1samp(gain[:, 0], 0)
    low, high = theirs.confidence_interval()
    assert found.difference / found.stderr == pytest.approx(theirs.statistic)
    assert found.freedom == theirs.df
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_weights_and_clusters_enter_difference_and_error() -> None:
    rng = np.random.default_rng(6)
    gain, size = rng.normal(size=(1, 60)), rng.uniform(1, 5, size=60)
    clusters = np.repeat(np.arange(20), 3)
    found = crossed_bootstrap(gain, Units(60, clusters=clusters.tolist(), size=size), resamples=20_000)
    assert found.difference == pytest.approx(np.average(gain[0], weights=size))
    assert found.clusters == 20 and found.freedom == 19
    assert (found.high - found.low) / 2 == pytest.approx(2.09 * found.stderr, rel=0.1)


def test_strata_are_kept_in_every_draw() -> None:
    level = np.repeat([0.0, 10.0], 20)
    gain = (level + np.random.default_rng(7).normal(0, 0.1, size=40))[None]
    apart = crossed_bootstrap(gain, Units(40, strata=level.tolist()))
    together = crossed_bootstrap(gain)
    assert apart.high - apart.low < 0.1 and together.high - together.low > 2


def test_identical_runs_do_not_differ() -> None:
    found = crossed_bootstrap(np.zeros((3, 10)))
    assert (found.difference, found.stderr, found.low, found.high, found.p_value) == (0, 0, 0, 0, 1)
    assert crossed_flip(np.zeros((3, 10))) == (1, 1, 1)


def test_equal_seeds_give_equal_numbers() -> None:
    gain = np.random.default_rng(8).normal(size=(8, 50))
    assert crossed_bootstrap(gain) == crossed_bootstrap(gain)
    assert crossed_bootstrap(gain) != crossed_bootstrap(gain, seed=1)
    assert crossed_flip(gain) == crossed_flip(gain)


def test_what_has_no_difference_is_refused() -> None:
    for gain in (np.ones(3), np.ones((0, 3)), np.array([[math.nan]])):
        with pytest.raises(DataError, match="must be finite"):
            crossed_bootstrap(gain)
    with pytest.raises(DataError, match="do not fit"):
        crossed_flip(np.ones((2, 3)), Units(4))


def test_students_t_tells_what_the_bootstrap_does_and_smaller_p_values() -> None:
    gain = gains(np.random.default_rng(7), 6, 40, 0.3, 1.0, 0.3)
    by_t, drawn = crossed_t(gain, thirds(40)), crossed_bootstrap(gain, thirds(40))
    assert (by_t.difference, by_t.stderr, by_t.freedom) == (drawn.difference, drawn.stderr, drawn.freedom)
    assert (by_t.low, by_t.high) == pytest.approx((drawn.low, drawn.high), abs=0.15 * (by_t.high - by_t.low))
    assert (
        crossed_t(gain + 5.0, thirds(40)).p_value < 1e-4 < crossed_bootstrap(gain + 5.0, thirds(40)).p_value
    )


@pytest.mark.parametrize("source", SOURCES)
def test_by_students_t_equal_methods_raise_few_alarms(source: tuple[int, int, float, float, float]) -> None:
    rng = np.random.default_rng(8)
    alarms = sum(crossed_t(gains(rng, *source), thirds(source[1])).p_value < 0.05 for _ in range(TRIALS))
    assert alarms <= MOST


def test_no_scatter_and_nothing_known_are_told_apart() -> None:
    assert crossed_t(np.zeros((2, 4))).p_value == 1.0
    assert crossed_t(np.ones((2, 4))).p_value == 0.0
    assert math.isnan(crossed_t(np.ones((1, 1))).p_value)
