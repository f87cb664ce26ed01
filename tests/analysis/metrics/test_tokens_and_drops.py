"""Token ids and capacity: planted vocabulary, early learning, and drops towards the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis.counts import count
from libmoe.analysis.metrics import tokens
from libmoe.analysis.metrics.drops import drop_curve
from libmoe.core.errors import ConfigError
from routed import trace_of


def test_a_token_id_that_always_goes_to_one_expert_is_its_top_token() -> None:
    ids_BL = torch.randint(0, 20, (10, 200))
    expert_BL = torch.where(ids_BL == 7, 3, torch.randint(0, 3, (10, 200)))
    counts = count(trace_of(expert_BL.unsqueeze(-1), 4, ids=ids_BL), ["token"])
    seen = np.bincount(ids_BL.reshape(-1).numpy(), minlength=20)
    found = tokens.top_tokens(counts.layers[0].by["token"], seen)
    assert found[3] == [tokens.TopToken(7, 1.0, int(seen[7]))]
    share = tokens.token_specialisation(counts.layers[0].by["token"], seen)
    assert share[7].tolist() == [0, 0, 0, 1]
    assert tokens.specialisation(counts.layers[0].by["token"], seen, top=1) > 0.4


def test_rare_ids_say_nothing() -> None:
    assert tokens.top_tokens([[1, 0]], [1], least=8) == [[], []]
    assert np.isnan(tokens.specialisation([[1, 0]], [1], least=8))
    assert np.isnan(tokens.token_specialisation([[0, 0]], [0])).all()


def test_similarity_of_equal_and_of_disjoint_routing() -> None:
    left = np.array([[10, 0, 0], [0, 30, 0]])
    assert tokens.js_similarity(left, 3 * left) == pytest.approx(1)
    assert tokens.js_similarity(left, left[:, [1, 2, 0]]) == pytest.approx(0)
    half = np.array([[5, 5, 0], [0, 30, 0]])
    assert 0 < tokens.js_similarity(left, half) < 1
    assert np.isnan(tokens.js_similarity([[1, 0]], [[1, 0]]))


@pytest.mark.parametrize("order", ["sequence", "random"])
def test_drops_rise_with_position_only_when_capacity_is_filled_in_order(order: str) -> None:
    expert_BLK = torch.multinomial(torch.tensor([0.7, 0.1, 0.1, 0.1]), 40 * 64, replacement=True).view(
        40, 64, 1
    )
    kept_BLK = torch.zeros_like(expert_BLK, dtype=torch.bool)
    for row in range(40):
        places = torch.arange(64) if order == "sequence" else torch.randperm(64)
        room = [20] * 4
        for place in places.tolist():
            expert = int(expert_BLK[row, place, 0])
            kept_BLK[row, place, 0], room[expert] = room[expert] > 0, room[expert] - 1
    edges, share = drop_curve(trace_of(expert_BLK, 4, kept=kept_BLK), bins=4)
    assert edges.tolist() == [0, 16, 32, 48, 64]
    if order == "sequence":
        assert share[0] == 0 and (np.diff(share) >= 0).all() and share[-1] > 0.5
    else:
        assert np.ptp(share) < 0.15 and share.mean() > 0.2


def test_without_capacity_nothing_is_dropped() -> None:
    trace = trace_of(torch.randint(0, 4, (2, 30, 2)), 4)
    assert drop_curve(trace)[1].max() == 0
    with pytest.raises(ConfigError, match="bins=0"):
        drop_curve(trace, bins=0)
