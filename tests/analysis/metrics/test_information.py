"""Information metrics against hand-computed cases, their limits and planted structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis.counts import count
from libmoe.analysis.metrics import information
from libmoe.core.errors import DataError
from routed import trace_of

DECIDED = np.diag([10, 10, 10, 10])
IGNORED = np.full((4, 4), 10)


def test_a_group_that_decides_and_one_that_is_ignored_are_the_limits() -> None:
    assert information.mutual_information(DECIDED) == pytest.approx(np.log(4))
    assert information.mutual_information(IGNORED) == pytest.approx(0, abs=1e-12)
    assert information.explained(DECIDED, corrected=False) == pytest.approx(1)
    assert information.explained(IGNORED) == 0
    assert information.dispatch_entropy(DECIDED) == 0
    assert information.dispatch_entropy(IGNORED) == pytest.approx(np.log(4))


def test_a_case_by_hand() -> None:
    joint = np.array([[3, 1], [1, 3]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert information.mutual_information(joint) == pytest.approx(expected)
    assert information.profiles(joint).tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert information.group_entropy(joint) == pytest.approx([0.562335, 0.562335], rel=1e-5)
    assert information.dispatch_entropy(np.array([[2, 1], [0, 1]])) == pytest.approx(0.5 * np.log(2))


def test_heat_map_rows_sum_to_one_and_shuffled_labels_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    label, expert = rng.integers(0, 6, 3000), rng.integers(0, 8, 3000)
    joint = np.zeros((6, 8), int)
    np.add.at(joint, (label, expert), 1)
    np.testing.assert_allclose(information.profiles(joint).sum(1), 1)
    assert information.mutual_information(joint) == pytest.approx(
        information.chance_information(joint), rel=0.5
    )
    assert information.explained(joint) == pytest.approx(0, abs=0.005)


def test_chance_is_what_shuffling_shows() -> None:
    rng = np.random.default_rng(1)
    joint = rng.multinomial(500, np.outer([0.5, 0.3, 0.2], np.full(6, 1 / 6)).ravel()).reshape(3, 6)
    drawn = information.shuffled(joint, draws=300)
    assert drawn.mean() == pytest.approx(information.chance_information(joint), rel=0.15)
    planted = joint.copy()
    planted[0, 0] += 60
    assert information.mutual_information(planted) > information.shuffled(planted, draws=300).max()


@pytest.mark.parametrize(("router", "expected"), [("hash of token ids", 1.0), ("position only", 0.0)])
def test_context_independence_of_a_hash_router_is_one_and_of_a_position_router_zero(
    router: str, expected: float
) -> None:
    ids_BL = torch.randint(0, 50, (64, 100))
    position_BL = torch.arange(100).expand(64, -1)
    expert_BL = ids_BL * 7919 % 8 if router == "hash of token ids" else position_BL % 8
    counts = count(trace_of(expert_BL.unsqueeze(-1), 8, ids=ids_BL), ["token", "position"])
    assert information.explained(counts.layers[0].by["token"]) == pytest.approx(expected, abs=0.01)
    assert information.explained(counts.layers[0].by["position"]) == pytest.approx(1 - expected, abs=0.01)


def test_planted_specialisation_is_recovered() -> None:
    domain_B = torch.arange(8) % 4
    favourite = (torch.rand(8, 500) < 0.7).long()
    expert_BL = favourite * domain_B[:, None] + (1 - favourite) * torch.randint(0, 4, (8, 500))
    trace = trace_of(expert_BL.unsqueeze(-1), 4, side={"domain": domain_B})
    share_GN = information.profiles(count(trace, ["domain"]).layers[0].by["domain"])
    assert share_GN.argmax(1).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(np.diag(share_GN), 0.7 + 0.3 / 4, atol=0.04)


def test_groups_without_assignments_and_wrong_shapes() -> None:
    share = information.profiles([[0, 0], [1, 1]])
    assert np.isnan(share[0]).all() and np.isnan(information.group_entropy([[0, 0], [1, 1]])[0])
    assert np.isnan(information.explained([[5, 0], [3, 0]]))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        information.profiles([1, 2, 3])
