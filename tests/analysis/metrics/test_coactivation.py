"""Pairs of experts: independence, planted groups, and layers that follow each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis.counts import count
from libmoe.analysis.metrics import coactivation
from routed import trace_of


def test_a_case_by_hand() -> None:
    counts = count(trace_of(torch.tensor([[[0, 1], [0, 1], [0, 2], [1, 2]]]), 4)).layers[0]
    expected = [[0, 2 / 3, 1 / 3, 0], [2 / 3, 0, 1 / 3, 0], [1 / 2, 1 / 2, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(coactivation.conditional(counts.coactive_NN), expected)
    assert coactivation.lift(counts.coactive_NN, counts.tokens)[0, 1] == pytest.approx(2 * 4 / 9)


def test_coactivation_under_independent_uniform_routing() -> None:
    counts = count(trace_of(torch.rand(40, 500, 64).topk(6).indices, 64)).layers[0]
    share = coactivation.conditional(counts.coactive_NN)
    off_diagonal = share[~np.eye(64, dtype=bool)]
    assert off_diagonal.mean() == pytest.approx(5 / 63, abs=0.001)
    assert off_diagonal.std() < 0.01


def test_planted_groups_are_found() -> None:
    group = torch.randint(0, 3, (1, 3000, 1))
    pair = torch.rand(1, 3000, 3).topk(2).indices
    counts = count(trace_of(pair + 3 * group, 9)).layers[0]
    assert sorted(coactivation.communities(counts.coactive_NN, counts.tokens)) == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]


def test_layers_that_follow_each_other_and_layers_that_do_not() -> None:
    first, other = torch.randint(0, 4, (1, 5000, 1)), torch.randint(0, 4, (1, 5000, 1))
    followed = count(trace_of({0: first, 1: 3 - first}, 4)).layers[0].next_NM
    free = count(trace_of({0: first, 1: other}, 4)).layers[0].next_NM
    np.testing.assert_allclose(coactivation.transition(followed), np.eye(4)[::-1])
    assert coactivation.conditional_entropy(followed) == 0
    assert coactivation.conditional_entropy(free) == pytest.approx(np.log(4), rel=0.01)
    np.testing.assert_allclose(coactivation.transition(free).sum(1), 1)
