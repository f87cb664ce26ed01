"""One test for all methods: few false alarms wherever the scatter comes from, and true differences are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import DataError
from libmoe.stats import Scatter, Units, crossed_f, friedman
from libmoe.stats.friedman import block_ranks

METHODS, CLUSTERS = 5, 30
TRIALS = 600


def table(rng: np.random.Generator, seeds: int, by_seed: float, by_cluster: float) -> np.ndarray:
    """Equal methods ``[M, S, U]``, three units a cluster."""
    run = rng.normal(0, 1, (1, seeds, 1)) + by_seed * rng.normal(size=(METHODS, seeds, 1))
    taste = by_cluster * np.repeat(rng.normal(size=(METHODS, 1, CLUSTERS)), 3, axis=2)
    return run + taste + 0.05 * rng.normal(size=(METHODS, seeds, 3 * CLUSTERS))


def thirds() -> Units:
    return Units(3 * CLUSTERS, clusters=np.repeat(np.arange(CLUSTERS), 3).tolist())


@pytest.mark.parametrize("source", [(2, 0.1, 0.0), (3, 0.0, 0.5), (3, 0.1, 0.5), (8, 0.05, 0.5)])
def test_equal_methods_raise_no_more_alarms_than_allowed(source: tuple[int, float, float]) -> None:
    rng = np.random.default_rng(0)
    alarms = sum(crossed_f(table(rng, *source), thirds()).p_value < 0.05 for _ in range(TRIALS))
    assert alarms <= scipy.stats.binom.ppf(1 - 5e-5, TRIALS, 0.05)


def test_ranks_over_seeds_alone_take_the_text_for_a_difference() -> None:
    rng = np.random.default_rng(1)
    fooled = 0
    for _ in range(200):
        score = thirds().mean(table(rng, 6, 0.02, 0.5))
        fooled += friedman(block_ranks(score)).f_p < 0.05
    assert fooled > 0.5 * 200


def test_a_true_difference_is_found_and_of_two_methods_f_is_t_squared() -> None:
    rng = np.random.default_rng(2)
    shift = np.array([0.0, 0.0, 0.0, 0.0, 1.0])[:, None, None]
    found = sum(crossed_f(table(rng, 4, 0.1, 0.5) + shift, thirds()).p_value < 0.05 for _ in range(50))
    assert found >= 48
    pair = table(rng, 4, 0.1, 0.0)[:2].mean(axis=2, keepdims=True)
    gain = (pair[1] - pair[0])[:, 0]
    theirs = scipy.stats.ttest_1samp(gain, 0.0)
    assert crossed_f(pair).f == pytest.approx(theirs.statistic**2)
    assert crossed_f(pair).p_value == pytest.approx(theirs.pvalue)


def test_a_pool_stands_in_for_seeds_that_are_too_few() -> None:
    value = table(np.random.default_rng(3), 1, 0.1, 0.5)
    alone, pooled = crossed_f(value, thirds()), crossed_f(value, thirds(), pool=Scatter(0.1, 20))
    assert pooled.f < alone.f and pooled.p_value > alone.p_value


def test_nothing_to_judge_by_and_nothing_to_find() -> None:
    assert math.isnan(crossed_f(np.zeros((3, 1, 1))).p_value)
    assert crossed_f(np.zeros((3, 2, 4))).p_value == 1.0
    with pytest.raises(DataError, match="it takes two"):
        crossed_f(np.zeros((1, 2, 4)))
