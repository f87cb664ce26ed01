"""Balance metrics against hand-computed cases and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from libmoe.analysis.metrics import balance
from libmoe.core.errors import DataError

UNIFORM, SINGLE, SKEWED = np.full(8, 5), np.eye(8)[3] * 40, np.array([4, 2, 1, 1])


def test_uniform_load_has_the_entropy_of_its_size_and_no_imbalance() -> None:
    assert balance.entropy(UNIFORM) == pytest.approx(np.log(8))
    assert balance.normalised_entropy(UNIFORM) == pytest.approx(1)
    assert balance.perplexity(UNIFORM) == pytest.approx(8) and balance.relative_perplexity(
        UNIFORM
    ) == pytest.approx(1)
    for metric in (balance.max_violation, balance.coefficient_of_variation, balance.gini):
        assert metric(UNIFORM) == pytest.approx(0, abs=1e-12)
    assert balance.dead(UNIFORM) == []


def test_collapse_to_one_expert_is_the_other_limit() -> None:
    assert balance.entropy(SINGLE) == 0 and balance.perplexity(SINGLE) == 1
    assert balance.max_violation(SINGLE) == pytest.approx(7)
    assert balance.coefficient_of_variation(SINGLE) == pytest.approx(np.sqrt(7))
    assert balance.gini(SINGLE) == pytest.approx(7 / 8)
    assert balance.dead(SINGLE) == [0, 1, 2, 4, 5, 6, 7]


def test_a_case_by_hand() -> None:
    assert balance.shares(SKEWED).tolist() == [0.5, 0.25, 0.125, 0.125]
    assert balance.entropy(SKEWED) == pytest.approx(1.75 * np.log(2))
    assert balance.perplexity(SKEWED) == pytest.approx(2**1.75)
    assert balance.max_violation(SKEWED) == pytest.approx(1.0)
    assert balance.coefficient_of_variation(SKEWED) == pytest.approx(np.sqrt(1.5) / 2)
    assert balance.gini(SKEWED) == pytest.approx(0.3125)


def test_scale_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    load = rng.integers(1, 50, 16)
    for metric in (balance.entropy, balance.max_violation, balance.coefficient_of_variation, balance.gini):
        assert metric(load) == pytest.approx(metric(3 * rng.permutation(load)))


def test_nobody_is_used_where_nothing_was_assigned() -> None:
    nothing = np.zeros(4)
    assert balance.shares(nothing).tolist() == [0, 0, 0, 0] and balance.dead(nothing) == [0, 1, 2, 3]
    assert balance.entropy(nothing) == 0 and balance.max_violation(nothing) == -1


@pytest.mark.parametrize("load", [[], [2, -1], [1, np.nan], [[1, 2], [3, 4]]])
def test_what_is_no_load_is_an_error(load: list) -> None:
    with pytest.raises(DataError, match="must be counts for each expert, none negative"):
        balance.entropy(load)
