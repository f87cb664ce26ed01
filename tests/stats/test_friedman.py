"""Friedman's test and critical differences agree with scipy and with published tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import DataError
from libmoe.stats import block_ranks, friedman, nemenyi_difference

Q_05 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
Q_10 = {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}
"""Demsar 2006, table 5a."""


@pytest.mark.parametrize(("level", "table"), [(0.95, Q_05), (0.90, Q_10)])
def test_nemenyi_takes_the_published_quantiles(level: float, table: dict[int, float]) -> None:
    for methods, q in table.items():
        found = nemenyi_difference(methods, 14, level)
        assert found / math.sqrt(methods * (methods + 1) / (6 * 14)) == pytest.approx(q, abs=1.1e-3)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("methods", "blocks"), [(3, 5), (6, 12), (10, 40)])
def test_scipy_gives_the_same_statistic(methods: int, blocks: int, ties: bool) -> None:
    score = np.random.default_rng(methods).normal(size=(methods, blocks)) + 0.1 * np.arange(methods)[:, None]
    score = np.round(score) if ties else score
    found, theirs = friedman(block_ranks(score)), scipy.stats.friedmanchisquare(*score)
    assert (found.chi_square, found.chi_p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert found.concordance == pytest.approx(theirs.statistic / (blocks * (methods - 1)))
    chi, n, k = theirs.statistic, blocks, methods
    assert found.f == pytest.approx((n - 1) * chi / (n * (k - 1) - chi))  # Iman & Davenport
    assert found.f_p == pytest.approx(scipy.stats.f.sf(found.f, k - 1, (k - 1) * (n - 1)))


def test_lower_scores_can_be_the_better_ones_and_ties_share_their_rank() -> None:
    score = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 5.0]])
    assert block_ranks(score).tolist() == [[2, 2.5], [1, 2.5], [3, 1]]
    assert block_ranks(score, lower_is_better=True).tolist() == [[2, 1.5], [3, 1.5], [1, 3]]


def test_full_agreement_has_the_chance_of_equal_rankings() -> None:
    score = np.repeat(np.arange(4.0)[:, None], 3, axis=1)
    found = friedman(block_ranks(score))
    assert (found.f, found.concordance) == (math.inf, 1)
    orders = list(itertools.permutations(range(4)))
    assert found.f_p == pytest.approx(np.mean([a == b == orders[0] for a in orders for b in orders]))


def test_methods_that_all_tie_do_not_differ() -> None:
    found = friedman(block_ranks(np.ones((3, 6))))
    assert (found.f_p, found.chi_p, found.concordance) == (1, 1, 0)
    assert friedman(block_ranks(np.array([[1.0], [2.0]]))).f_p == 1  # one block says nothing


def test_false_alarms_are_rare_and_lucky_runs_fool_only_who_forgets_clusters() -> None:
    rng = np.random.default_rng(0)
    trials, methods, seeds, domains = 1000, 5, 6, 8
    clusters = np.repeat(np.arange(seeds), domains).tolist()
    alarms = fooled = 0
    for _ in range(trials):
        run = rng.normal(size=(methods, seeds, 1))
        score = (run + rng.normal(size=(methods, seeds, domains))).reshape(methods, -1)
        alarms += friedman(block_ranks(score, clusters)).f_p < 0.05
        fooled += friedman(block_ranks(score)).f_p < 0.05
    assert alarms <= scipy.stats.binom.ppf(1 - 5e-5, trials, 0.05)
    assert fooled > 0.3 * trials


def test_what_cannot_be_ranked_is_refused() -> None:
    for score in (np.ones((1, 4)), np.ones((3, 0)), np.array([[1.0], [math.nan]]), np.ones(3)):
        with pytest.raises(DataError, match="two methods or more"):
            block_ranks(score)
    with pytest.raises(DataError, match="3 entries do not fit 4 blocks"):
        block_ranks(np.ones((2, 4)), [0, 1, 2])
