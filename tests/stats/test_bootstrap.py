"""Bootstrap intervals agree with scipy's, and whole clusters are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from libmoe.stats import bootstrap
from libmoe.stats.clusters import Members, numbered


def skewed(items: int = 40) -> np.ndarray:
    return np.random.default_rng(0).lognormal(0, 0.8, size=items)


def variance(values: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda places: float(np.var(values[places]))


@pytest.mark.parametrize(("ours", "theirs"), [("bca", "BCa"), ("percentile", "percentile")])
def test_scipy_gives_the_same_interval(ours: str, theirs: str) -> None:
    values = skewed()
    found = bootstrap(variance(values), len(values), resamples=6000, method=ours)
    other = scipy.stats.bootstrap(
        (values,), np.var, n_resamples=20000, method=theirs, rng=np.random.default_rng(1)
    )
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found.value == pytest.approx(np.var(values))
    assert found.stderr == pytest.approx(other.standard_error, rel=0.05)
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.06 * width)


def test_bca_reaches_further_to_the_side_of_the_tail() -> None:
    values = skewed()
    plain = bootstrap(variance(values), len(values), method="percentile")
    shifted = bootstrap(variance(values), len(values), method="bca")
    assert shifted.low > plain.low and shifted.high > plain.high


def test_leaving_out_groups_estimates_the_same_shift() -> None:
    values = skewed(800)
    few = bootstrap(variance(values), len(values), resamples=2000)
    other = scipy.stats.bootstrap(
        (values,), np.var, n_resamples=5000, method="BCa", rng=np.random.default_rng(1)
    )
    width = other.confidence_interval.high - other.confidence_interval.low
    assert (few.low, few.high) == pytest.approx(tuple(other.confidence_interval), abs=0.08 * width)


def test_whole_clusters_are_drawn() -> None:
    clusters = ["a", "b", "a", "c", "b", "a"]
    seen: list[np.ndarray] = []
    bootstrap(
        lambda places: float(seen.append(places) or len(places)), clusters, resamples=50, method="percentile"
    )
    for places in seen:
        counts = np.bincount(places, minlength=6)
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3


def test_members_are_found_in_any_order_and_as_often_as_asked() -> None:
    members = Members(numbered(["a", "b", "a", "c"], 4))
    assert members.of(np.array([2, 0, 0])).tolist() == [3, 0, 2, 0, 2]


def test_one_cluster_has_no_interval() -> None:
    found = bootstrap(lambda places: float(places.sum()), ["x", "x"])
    assert found.value == 1 and math.isnan(found.low)


def test_a_statistic_that_never_varies_has_an_interval_of_no_width() -> None:
    found = bootstrap(lambda places: 3.0, 10, resamples=50)
    assert (found.low, found.high, found.stderr) == (3, 3, 0)


def test_equal_seeds_give_equal_intervals() -> None:
    values = skewed()
    assert bootstrap(variance(values), 40, resamples=99) == bootstrap(variance(values), 40, resamples=99)
    assert bootstrap(variance(values), 40, resamples=99) != bootstrap(
        variance(values), 40, resamples=99, seed=1
    )
