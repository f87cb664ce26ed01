"""Which methods a critical-difference diagram joins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import DataError
from libmoe.stats import critical_difference
from libmoe.stats.cliques import cliques, signed_rank

DEMSAR = np.array(
    [
        [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957],
        [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978],
        [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946],
        [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970],
    ]
)
"""Four trees on fourteen data sets (Demsar 2006, table 6), whose ranks and tests are worked out there.

The printed ranks tell the last two apart on the last data set but one, where their printed scores are equal.
"""
TREES = ["C4.5", "m", "cf", "m+cf"]


def test_a_published_example_comes_out() -> None:
    found = critical_difference(TREES, DEMSAR, level=0.90)
    ranks = {"m+cf": 1.964, "m": 2.000, "cf": 2.893, "C4.5": 3.143}
    assert list(found.mean_rank) == list(ranks)
    assert found.mean_rank == pytest.approx(ranks, abs=5e-4)
    assert found.difference == pytest.approx(1.12, abs=5e-3)
    assert found.nemenyi == (("m+cf", "m", "cf"), ("cf", "C4.5"))
    assert critical_difference(TREES, DEMSAR).difference == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(TREES, DEMSAR).nemenyi == (("m+cf", "m", "cf", "C4.5"),)
    assert found.friedman.f_p < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_tested_as_scipy_does(seed: int) -> None:
    d = np.random.default_rng(seed).normal(0.3, 1, size=12)
    assert signed_rank(d) == pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue)
    assert signed_rank(np.append(d, 0.0)) == signed_rank(d)


def test_holm_corrects_all_pairs_together() -> None:
    found = critical_difference(TREES, DEMSAR)
    raw = sorted(signed_rank(a - b) for a, b in itertools.combinations(DEMSAR, 2))
    assert min(found.p_values.values()) == pytest.approx(6 * raw[0])
    assert next(iter(found.p_values)) == ("m+cf", "m")


def test_a_planted_gap_separates_two_groups() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 0.3, size=(5, 20)) + np.array([0.0, 0.0, 3.0, 3.0, 9.0])[:, None]
    found = critical_difference("abcde", score)
    assert {frozenset(group) for group in found.pairwise} == {frozenset("ab"), frozenset("cd")}
    worse = critical_difference("abcde", -score, lower_is_better=True)
    assert worse == found


def test_what_two_methods_differ_by_does_not_depend_on_the_others_when_pairs_are_tested() -> None:
    """The reason for which Benavoli, Corani & Mangili prefer tests of pairs."""
    b_wins = np.arange(30) < 19
    a, b = np.zeros(30), np.where(b_wins, 1.0, -1.0)
    others = np.linspace(0.1, 0.9, 6)[:, None] + np.where(b_wins, 0.0, 5.0)  # between them, or above both
    alone = critical_difference("ab", np.stack([a, b]))
    crowd = critical_difference("abcdefgh", np.concatenate([np.stack([a, b]), others]))
    assert ("b", "a") in alone.nemenyi and ("b", "a") in alone.pairwise
    assert not any({"a", "b"} <= set(group) for group in crowd.nemenyi)
    assert any({"a", "b"} <= set(group) for group in crowd.pairwise)


@pytest.mark.parametrize("seed", range(5))
def test_cliques_are_those_of_trying_every_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = list(range(8))
    alike = {pair for pair in itertools.combinations(order, 2) if rng.random() < 0.6}
    groups = [g for size in range(2, 9) for g in itertools.combinations(order, size)]
    full = [g for g in groups if all(pair in alike for pair in itertools.combinations(g, 2))]
    largest = [list(g) for g in full if not any(set(g) < set(other) for other in full)]
    assert cliques(order, alike) == sorted(largest)


def test_any_false_claim_about_a_pair_is_rare() -> None:
    rng = np.random.default_rng(2)
    trials, wrong, nemenyi = 400, 0, 0
    for _ in range(trials):
        found = critical_difference("abcd", rng.normal(size=(4, 10)))
        wrong += min(found.p_values.values()) < 0.05
        nemenyi += found.nemenyi != (tuple(found.mean_rank),)
    most = scipy.stats.binom.ppf(1 - 5e-5, trials, 0.05)
    assert wrong <= most and nemenyi <= most


def test_names_must_fit() -> None:
    for names in ("ab", "aac"):
        with pytest.raises(DataError, match="do not fit"):
            critical_difference(names, np.ones((3, 4)))
