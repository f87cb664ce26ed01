"""Relations between experts are those that were planted, and chance makes none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from libmoe.report.experts.relations import PARTNERS, alike, groups, onwards, together
from planted_analysis import planted

Analysis = dict[str, Any]


def test_experts_of_one_domain_meet_and_others_do_not(analysis: Analysis) -> None:
    pairs = {(edge.left, edge.right) for edge in together(analysis["layers"][-1])}
    assert pairs == {(0, 4), (1, 5), (2, 6), (3, 7)}
    assert all(edge.strength > 1.2 for edge in together(analysis["layers"][-1]))


def test_independent_choices_make_next_to_no_pairs() -> None:
    layer = planted(layers=2, experts=64, k=4, tokens=5000, checkpoints=0)["layers"][0]  # sharpness 0
    assert len(together(layer)) < 0.01 * 64 * 63 / 2


def test_groups_are_the_domains_of_the_experts(analysis: Analysis) -> None:
    found = groups(analysis["layers"][-1])
    assert all(found[e] == found[e + 4] for e in range(4))
    assert len(set(found)) == 4


def test_strength_by_hand() -> None:
    layer: Any = {"num_experts": 3, "tokens": 100, "coactive": [[50, 40, 10], [40, 50, 10], [10, 10, 40]]}
    (edge,) = together(layer)  # 40 of 100 tokens took both; 25 would by chance
    assert (edge.left, edge.right, edge.strength, edge.share) == (
        0,
        1,
        pytest.approx(1.6),
        pytest.approx(0.8),
    )


def test_paths_by_hand() -> None:
    layer: Any = {"next": [[30, 10], [0, 60]]}
    found = {(edge.left, edge.right): (edge.strength, edge.share) for edge in onwards(layer)}
    assert found == {
        (0, 0): (pytest.approx(0.75 / 0.3), 0.75),
        (0, 1): (pytest.approx(0.25 / 0.7), 0.25),
        (1, 1): (pytest.approx(1 / 0.7), 1.0),
    }


def test_each_expert_keeps_few_neighbours_whatever_their_number() -> None:
    rng = np.random.default_rng(0)
    value = rng.random((40, 40))
    layer: Any = {"similarity": {"outputs": (value + value.T).tolist()}}
    edges = alike(layer, "outputs")
    assert 40 * PARTNERS / 2 <= len(edges) <= 40 * PARTNERS
    assert [edge.strength for edge in edges] == sorted((e.strength for e in edges), reverse=True)
    assert all(edge.left < edge.right for edge in edges)


def test_nothing_measured_is_no_relation() -> None:
    layer: Any = {"num_experts": 4}
    assert together(layer) == onwards(layer) == alike(layer, "weights") == []
    assert groups(layer) == [0, 0, 0, 0]
