"""The smallest difference that a comparison can see."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from libmoe.stats import detectable_difference, paired


@pytest.mark.parametrize("freedom", [2, 5, 30, 1000])
def test_the_t_test_has_the_asked_power_at_it(freedom: int) -> None:
    found = detectable_difference(0.02, freedom, power=0.8)
    critical = scipy.stats.t.ppf(0.975, freedom)
    assert scipy.stats.nct.sf(critical, freedom, found / 0.02) == pytest.approx(0.8, abs=1e-6)


def test_many_clusters_give_the_sum_of_two_normal_quantiles() -> None:
    theirs = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    assert detectable_difference(1.0, 1e6) == pytest.approx(theirs, rel=1e-4)


def test_four_times_the_clusters_see_half_the_difference() -> None:
    a, b = [0.0, 1.0, 0.0, 1.0] * 100, [0.0, 1.0, 1.0, 0.0] * 100
    assert paired(a * 4, b * 4).detectable() == pytest.approx(paired(a, b).detectable() / 2, rel=0.01)


def test_too_few_clusters_can_see_nothing() -> None:
    found = paired([0.0, 0.1, 0.2, 0.0, 0.3], [1.0, 0.9, 0.8, 1.0, 0.7])
    assert found.p_value == 2 / 2**5 and found.detectable() == math.inf
    assert paired([0.0, 0.1, 0.2, 0.0, 0.3, 0.1], [1.0, 0.9, 0.8, 1.0, 0.7, 0.6]).detectable() < math.inf


def test_without_scatter_nothing_is_known() -> None:
    assert math.isnan(detectable_difference(0.0, 10))
    assert math.isnan(paired([1.0] * 10, [1.0] * 10).detectable())
