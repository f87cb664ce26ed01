"""How stable an order of methods is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import DataError
from libmoe.stats import rank_stability

NAMES = list("abcde")


def planted(rng: np.random.Generator, effect: np.ndarray, seeds: int, tasks: int) -> np.ndarray:
    """Scores with luck of a run, taste of a method for a task, and noise."""
    methods = len(effect)
    luck, taste = rng.normal(0, 0.7, size=(methods, seeds, 1)), rng.normal(0, 0.7, size=(methods, 1, tasks))
    return effect[:, None, None] + luck + taste + rng.normal(size=(methods, seeds, tasks))


def test_mean_ranks_are_over_all_blocks_and_the_best_comes_first() -> None:
    score = planted(np.random.default_rng(0), np.array([0, 2, 4, 6, 8.0]), 4, 7)
    found = rank_stability(NAMES, score)
    assert [rank.method for rank in found.ranks] == list("edcba")
    means = scipy.stats.rankdata(-score, axis=0).mean(axis=(1, 2))
    assert [rank.mean for rank in found.ranks] == pytest.approx(sorted(means))
    assert found.ranks[0].first > 0.95
    assert rank_stability(NAMES, -score, lower_is_better=True) == found


def test_agreement_of_seeds_is_kendalls() -> None:
    score = planted(np.random.default_rng(1), 0.5 * np.arange(5), 4, 7)
    score[0] = score[1]  # ties
    found = rank_stability(NAMES, score)
    by_seed = score.mean(axis=2)
    taus = [
        scipy.stats.kendalltau(by_seed[:, a], by_seed[:, b]).statistic for a in range(4) for b in range(a)
    ]
    assert found.tau_of_seeds == pytest.approx(np.mean(taus))
    chi = scipy.stats.friedmanchisquare(*by_seed).statistic
    assert found.concordance_of_seeds == pytest.approx(chi / (4 * 4))
    chi = scipy.stats.friedmanchisquare(*score.mean(axis=1)).statistic
    assert found.concordance_of_tasks == pytest.approx(chi / (7 * 4))


def test_equal_methods_are_first_equally_often_and_hardly_ever_for_sure() -> None:
    rng = np.random.default_rng(2)
    covered, sure, first = 0, 0, np.zeros(5)
    trials = 200
    for trial in range(trials):
        found = rank_stability(NAMES, planted(rng, np.zeros(5), 4, 8), resamples=400, seed=trial)
        covered += sum(rank.low <= 3 <= rank.high for rank in found.ranks)
        sure += found.ranks[0].first > 0.95
        first += [next(r.first for r in found.ranks if r.method == name) for name in NAMES]
        assert sum(rank.first for rank in found.ranks) == pytest.approx(1)
    assert covered >= 0.93 * 5 * trials
    assert sure <= scipy.stats.binom.ppf(1 - 5e-5, trials, 0.05)
    assert first / trials == pytest.approx(np.full(5, 0.2), abs=0.07)


def test_one_seed_and_one_task_have_no_agreement_and_no_scatter() -> None:
    found = rank_stability(NAMES, np.arange(5.0).reshape(5, 1, 1))
    assert math.isnan(found.tau_of_seeds) and math.isnan(found.concordance_of_tasks)
    for place, rank in enumerate(found.ranks, 1):
        assert (rank.low, rank.mean, rank.high) == pytest.approx((place, place, place))


def test_methods_that_tie_share_the_first_place() -> None:
    found = rank_stability(["a", "b"], np.ones((2, 3, 3)))
    assert [rank.first for rank in found.ranks] == [0.5, 0.5] and math.isnan(found.tau_of_seeds)


def test_scores_must_fit_the_names() -> None:
    with pytest.raises(DataError, match="of 2 names"):
        rank_stability(["a", "b"], np.ones((3, 2, 2)))
