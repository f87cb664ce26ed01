"""Paired differences: scipy's t test where items are independent, the clustered formula where they are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from libmoe.stats import Pairs, clustered_mean, paired, paired_average


def scores(seed: int = 0, items: int = 60) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=items)
    return a.tolist(), (a + rng.normal(0.3, 0.5, size=items)).tolist()


def test_independent_items_give_the_paired_t_test() -> None:
    a, b = scores()
    found, theirs = paired(a, b), scipy.stats.ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert found.difference / found.stderr == pytest.approx(theirs.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.freedom == pytest.approx(theirs.df)
    assert found.p_value < 1e-3 and theirs.pvalue < 1e-3


def test_clusters_enter_the_error_as_in_the_formula() -> None:
    a, b = scores()
    clusters = [i // 5 for i in range(60)]
    found = paired(a, b, clusters)
    residual = np.subtract(b, a) - found.difference
    total = sum(residual[i] * residual[j] for i in range(60) for j in range(60) if clusters[i] == clusters[j])
    assert found.stderr == pytest.approx(math.sqrt(12 / 11 * total) / 60)
    assert found.clusters == 12 and found.items == 60


def test_exchanging_the_models_changes_the_sign_only() -> None:
    a, b = scores()
    one, other = paired(a, b), paired(b, a)
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert other.p_value == one.p_value


def test_a_cluster_that_stands_alone_has_no_interval() -> None:
    found = paired([0.0, 1.0], [1.0, 1.0], ["x", "x"])
    assert found.difference == 0.5
    assert math.isnan(found.stderr) and math.isnan(found.low)
    assert found.p_value == 1


def test_equal_answers_have_no_scatter_and_no_evidence() -> None:
    found = paired([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (found.difference, found.stderr, found.p_value) == (0, 0, 1)


@pytest.mark.parametrize(
    ("a", "b", "clusters"), [([], [], None), ([1.0], [1.0, 2.0], None), ([1.0, 1.0], [1.0, 2.0], ["x"])]
)
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float], clusters: list[str] | None) -> None:
    with pytest.raises(ValueError):
        paired(a, b, clusters)


def test_an_average_weighs_parts_and_adds_their_errors() -> None:
    parts = [Pairs(*scores(seed, items), None) for seed, items in ((1, 30), (2, 80), (3, 50))]
    found = paired_average(parts, [2, 1, 1])
    means = [clustered_mean(np.subtract(p.b, p.a).tolist()) for p in parts]
    share = [0.5, 0.25, 0.25]
    assert found.difference == pytest.approx(sum(w * m.value for w, m in zip(share, means)))
    assert found.stderr == pytest.approx(math.hypot(*(w * m.stderr for w, m in zip(share, means))))
    assert found.items == found.clusters == 160


def test_the_average_of_two_parts_is_welchs_test() -> None:
    first, second = scores(4, 12), scores(5, 40)
    found = paired_average([Pairs(*first), Pairs(*second)])
    d1, d2 = np.subtract(first[1], first[0]), np.subtract(second[1], second[0])
    theirs = scipy.stats.ttest_ind(d1, -d2, equal_var=False)
    assert 2 * found.difference / (2 * found.stderr) == pytest.approx(theirs.statistic)
    assert found.freedom == pytest.approx(theirs.df)


def test_one_part_is_the_paired_comparison_itself() -> None:
    a, b = scores()
    clusters = [i // 3 for i in range(60)]
    assert paired_average([Pairs(a, b, clusters)], [7.0]) == pytest.approx(paired(a, b, clusters))
