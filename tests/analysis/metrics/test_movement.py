"""Forecasting of experts: nothing on routing without structure, the truth on a planted chain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from libmoe.analysis.counts import count
from libmoe.analysis.metrics import movement
from libmoe.analysis.trace import Trace
from routed import trace_of


def chain(steps: int, num_experts: int, stay: float) -> torch.Tensor:
    """Experts of a token sequence that move to the next expert with probability ``stay``, else anywhere."""
    expert = torch.zeros(1, steps, 1, dtype=torch.long)
    for t in range(1, steps):
        follow = torch.rand(()) < stay
        expert[0, t, 0] = (
            (expert[0, t - 1, 0] + 1) % num_experts if follow else torch.randint(num_experts, ())
        )
    return expert


def test_without_structure_the_heat_map_is_k_over_n_and_coverage_is_the_share() -> None:
    expert_BLK = torch.rand(8, 2000, 10).topk(2, dim=-1).indices
    (next_NN, from_N) = movement.across_tokens(trace_of(expert_BLK, 10))[0]
    np.testing.assert_allclose(movement.heat_map(next_NN, from_N), 0.2, atol=0.03)
    assert movement.coverage(next_NN, 0.2) == pytest.approx(0.2, abs=0.03)


def test_a_planted_markov_chain_is_recovered() -> None:
    (next_NN, from_N) = movement.across_tokens(trace_of(chain(6000, 5, 0.6), 5))[0]
    truth = 0.4 / 5 + 0.6 * np.roll(np.eye(5), 1, axis=1)
    np.testing.assert_allclose(movement.heat_map(next_NN, from_N), truth, atol=0.05)
    assert movement.coverage(next_NN, 0.2) == pytest.approx(
        0.6 + 0.4 / 5, abs=0.03
    )  # top-1 recall of the chain
    assert movement.popularity_coverage(next_NN, 0.2) == pytest.approx(0.2, abs=0.03)


def test_skew_alone_is_as_good_with_popularity() -> None:
    share = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    expert_BLK = torch.multinomial(share, 6000, replacement=True).view(1, 6000, 1)
    (next_NN, _) = movement.across_tokens(trace_of(expert_BLK, 5))[0]
    assert movement.coverage(next_NN, 0.2) == pytest.approx(0.6, abs=0.03)
    assert movement.popularity_coverage(next_NN, 0.2) == pytest.approx(
        movement.coverage(next_NN, 0.2), abs=0.02
    )


@pytest.mark.parametrize("size", [1 << 17, 13])
def test_only_neighbours_in_the_same_sequence_count(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace.pieces, "__kwdefaults__", Trace.pieces.__kwdefaults__ | {"size": size})
    expert_BLK = torch.randint(0, 4, (3, 20, 2))
    trace = trace_of({0: expert_BLK, 1: expert_BLK.flip(0)}, 4)
    expected = np.zeros((4, 4), int)
    for row in expert_BLK.tolist():
        for now, following in itertools.pairwise(row):
            for i in now:
                for j in following:
                    expected[i, j] += 1
    found = movement.across_tokens(trace)
    assert found[0][0].tolist() == found[1][0].tolist() == expected.tolist()
    assert found[0][1].sum() == 3 * 19 * 2


def test_the_next_layer_is_foretold_where_it_follows() -> None:
    first = torch.randint(0, 6, (4, 500, 1))
    counts = count(trace_of({0: first, 1: (first + 2) % 6}, 6))
    assert movement.coverage(counts.layers[0].next_NM, 1 / 6) == 1
    heat = movement.heat_map(counts.layers[0].next_NM, counts.layers[0].load_N)
    np.testing.assert_allclose(heat, np.roll(np.eye(6), 2, axis=1))


def test_rank_correlation_of_loads() -> None:
    assert movement.rank_correlation([1, 5, 9], [2, 3, 50]) == pytest.approx(1)
    assert movement.rank_correlation([1, 5, 9], [9, 5, 1]) == pytest.approx(-1)
    assert np.isnan(movement.rank_correlation([1, 1, 1], [1, 2, 3]))
