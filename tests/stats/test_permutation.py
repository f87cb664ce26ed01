"""The sign-flip test gives the p-value of trying every sign, and scipy's where scipy has the same test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from libmoe.stats import exchange_test, sign_flip
from libmoe.stats.permutation import _sampled


def brute_force(values: np.ndarray) -> float:
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=len(values))]
    return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-9))


@pytest.mark.parametrize("seed", range(6))
def test_few_differences_of_any_size_are_tried_with_all_signs(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, 1, size=11)
    found = sign_flip(values)
    assert found.exact
    assert found.p_value == pytest.approx(brute_force(values), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_whole_differences_have_their_exact_p_value(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 5, size=13).astype(float)
    found = sign_flip(values / 8)  # scores in eighths are whole numbers of eighths
    assert found.exact
    assert found.p_value == pytest.approx(brute_force(values), abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (120, 90), (4000, 3700), (5, 5)])
def test_right_or_wrong_answers_give_mcnemars_exact_test(wins: int, losses: int) -> None:
    values = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 100)
    theirs = scipy.stats.binomtest(wins, wins + losses).pvalue
    assert sign_flip(values).p_value == pytest.approx(theirs, rel=1e-9)


def test_scipys_paired_permutation_test_agrees() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(0.5, 1, size=12)
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip(b - a).p_value == pytest.approx(theirs.pvalue)


def test_many_whole_differences_agree_with_random_signs() -> None:
    values = np.random.default_rng(1).integers(-4, 5, size=300).astype(float) + 0.0
    values[:25] += 1
    found = sign_flip(values)
    assert found.exact
    sampled = _sampled(values, 40_000, seed=0)
    assert abs(sampled - found.p_value) < 4 * np.sqrt(found.p_value * (1 - found.p_value) / 40_000)


def test_random_signs_are_reproducible_and_never_give_zero() -> None:
    values = np.random.default_rng(2).normal(3, 1, size=40)
    found = sign_flip(values, resamples=999)
    assert not found.exact
    assert found == sign_flip(values, resamples=999)
    assert found.p_value == 1 / 1000


def test_no_difference_at_all_is_no_evidence() -> None:
    assert sign_flip(np.zeros(50)).p_value == 1
    assert sign_flip(np.zeros(0)).p_value == 1


def test_exchanging_sides_of_a_mean_is_flipping_signs() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=60), rng.normal(0.3, 1, size=60)
    clusters = np.repeat(np.arange(12), 5)

    def difference(swapped: np.ndarray) -> float:
        return float(np.mean(np.where(swapped, a - b, b - a)))

    exact = sign_flip(np.bincount(clusters, weights=b - a)).p_value
    found = exchange_test(difference, clusters.tolist(), resamples=4000)
    assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)


def test_a_statistic_without_a_value_counts_against_a_difference() -> None:
    def difference(swapped: np.ndarray) -> float:
        return 1.0 if not swapped.any() else float("nan")

    assert exchange_test(difference, 20, resamples=99) == 1
