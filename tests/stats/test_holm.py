"""Holm's correction is the closed test of all intersections, each by Bonferroni."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from libmoe.stats import holm


def test_it_multiplies_by_the_number_of_hypotheses_left() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert adjusted == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_the_closed_test(seed: int) -> None:
    p = dict(enumerate(np.random.default_rng(seed).beta(0.4, 2, size=7).tolist()))
    subsets = [s for size in range(1, 8) for s in itertools.combinations(p, size)]
    for key, corrected in holm(p).items():
        worst = max(min(1.0, len(s) * min(p[k] for k in s)) for s in subsets if key in s)
        assert corrected == pytest.approx(worst)


def test_any_false_claim_among_many_is_as_rare_as_one() -> None:
    rng = np.random.default_rng(0)
    families = rng.uniform(size=(2000, 12))
    wrong = sum(min(holm(dict(enumerate(p.tolist()))).values()) < 0.05 for p in families)
    assert 62 <= wrong <= 135  # 99.99 % of a binomial around 2000 x (1 - (1 - 0.05 / 12)^12) = 98


def test_one_comparison_stays_as_it_is_and_none_is_none() -> None:
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({}) == {}


def test_order_is_kept() -> None:
    assert list(holm({"b": 0.5, "a": 0.01, "c": 0.2})) == ["b", "a", "c"]
