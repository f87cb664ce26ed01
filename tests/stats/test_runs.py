"""Runs are compared on what they have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.stats import Units, clustered_mean, common_runs, largest_block


def test_only_seeds_that_all_finished_are_kept_and_the_others_named() -> None:
    scores = {("a", s): [s, 0.0] for s in (3, 1, 2)} | {("b", s): [s, 1.0] for s in (1, 3, 4)}
    found = common_runs(scores)
    assert (found.methods, found.seeds) == (("a", "b"), (1, 3))
    assert found.value_MSU.tolist() == [[[1, 0], [3, 0]], [[1, 1], [3, 1]]]
    assert found.left_out == {"a": (2,), "b": (4,)}
    assert common_runs(scores, ["b"]).seeds == (1, 3, 4)
    assert common_runs(scores, ["b", "a"]).methods == ("b", "a")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "no finished runs"),
        ({("a", 0): [1.0], ("b", 1): [1.0]}, "no common seed"),
        ({("a", 0): [1.0], ("b", 0): [1.0, 2.0]}, "'b' seed 0 has scores of shape"),
        ({("a", 0): [1.0], ("b", 0): [math.nan]}, "'b' seed 0 has scores that are not finite"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(
    scores: dict[tuple[str, int], list[float]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        common_runs(scores)


def test_errors_over_clusters_are_those_of_a_clustered_mean() -> None:
    rng = np.random.default_rng(0)
    value, clusters = rng.normal(size=(3, 20)), rng.integers(6, size=20).tolist()
    errors = np.sqrt(Units(20, clusters=clusters).squares(value))
    assert errors == pytest.approx([clustered_mean(row.tolist(), clusters).stderr for row in value])


def test_strata_take_their_level_out_and_a_weight_counts_as_so_many_units() -> None:
    level = np.repeat([0.0, 10.0], 10)
    noise = np.random.default_rng(1).normal(size=20)
    apart, together = Units(20, strata=level.tolist()), Units(20)
    assert apart.squares(level + noise) < 0.1 * together.squares(level + noise)
    assert apart.freedom == 18 and together.freedom == 19
    heavy = Units(2, size=[1, 3])
    assert heavy.mean(np.array([1.0, 5.0])) == 4 and heavy.sums(np.array([1.0, 5.0])).tolist() == [1, 15]


@pytest.mark.parametrize(
    "wrong", [{"clusters": [0]}, {"size": [1.0, 0.0]}, {"strata": ["x", "y"], "clusters": [0, 0]}]
)
def test_units_that_do_not_fit_are_refused(wrong: dict[str, list]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        Units(2, **wrong)


def test_the_largest_block_is_the_one_that_tells_most_of_scatter() -> None:
    assert largest_block({"a": [0, 1, 2], "b": [2, 1, 0], "c": [0]}) == (("a", "b"), (0, 1, 2))
    decided = {"base": range(8), "near": range(8), **{f"m{i}": range(3) for i in range(10)}}
    assert largest_block(decided) == (("base", "near", *(f"m{i}" for i in range(10))), (0, 1, 2))
    assert largest_block({"a": [0], "b": [0]}) == (("a", "b"), (0,))
    assert largest_block({"a": []}) == largest_block({}) == ((), ())
