"""nPMI of experts and marker tokens: its limits, and planted experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis.metrics.npmi import count_markers, npmi
from libmoe.core.errors import ConfigError
from routed import trace_of


def one(joint: float, expert: float, marker: float, positions: float) -> float:
    return float(npmi(np.array(joint), np.array(expert), np.array(marker), positions))


def test_npmi_is_one_when_an_expert_fires_exactly_on_marker_positions() -> None:
    assert one(10, 10, 10, 1000) == pytest.approx(1)


def test_npmi_is_zero_when_independent_and_minus_one_when_never_together() -> None:
    assert one(20, 200, 100, 1000) == pytest.approx(0)
    assert one(0, 200, 100, 1000) == -1


def test_npmi_does_not_change_when_traces_are_doubled_and_is_symmetric() -> None:
    assert one(13, 40, 20, 500) == pytest.approx(one(26, 80, 40, 1000))
    assert one(13, 40, 20, 500) == pytest.approx(one(13, 20, 40, 500))


def test_what_never_occurs_has_no_score() -> None:
    assert np.isnan(one(0, 0, 5, 100)) and one(7, 7, 7, 7) == 1


def planted() -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Experts 5 of layer 3 and 1 of layer 7 fire on the markers 90 and 91 nearly always, elsewhere hardly ever."""
    ids_BL = torch.randint(0, 80, (40, 60))
    ids_BL[:, 10], ids_BL[:, 40] = 90, 91
    marker_BL = ids_BL >= 90
    layers = {}
    for layer in range(8):
        expert_BLK = torch.stack([torch.randint(6, 10, (40, 60)), torch.randint(2, 5, (40, 60))], -1)
        for where, expert in ((3, 5), (7, 1)):
            if layer == where:
                fires = torch.rand(40, 60) < torch.where(marker_BL, 0.95, 0.05)
                expert_BLK[..., 0] = torch.where(fires, expert, expert_BLK[..., 0])
        layers[layer] = expert_BLK
    return ids_BL, layers


def test_planted_experts_rank_first() -> None:
    ids_BL, layers = planted()
    found = count_markers(trace_of(layers, 10, ids=ids_BL), [90, 91])
    assert {(layer, expert) for layer, expert, _ in found.ranked(2)} == {(3, 5), (7, 1)}
    assert found.ranked(3)[2][2] < 0.5 * found.ranked(3)[1][2]


def test_counters_do_not_grow_with_the_trace() -> None:
    ids_BL, layers = planted()
    short = count_markers(trace_of({k: v[:4] for k, v in layers.items()}, 10, ids=ids_BL[:4]), [90, 91])
    long = count_markers(trace_of(layers, 10, ids=ids_BL), [90, 91])
    assert short.joint_WN[3].shape == long.joint_WN[3].shape == (2, 10)
    assert long.positions[3] == 2400 and long.marker_W[3].tolist() == [40, 40]


def test_the_position_before_the_marker_on_request() -> None:
    ids_BL = torch.tensor([[1, 2, 9, 1, 9]])
    expert_BLK = torch.tensor([[0, 1, 0, 1, 0]]).unsqueeze(-1)
    trace = trace_of(expert_BLK, 2, ids=ids_BL)
    assert count_markers(trace, [9]).scores(0).tolist() == pytest.approx([one(2, 3, 2, 5), -1])
    assert count_markers(trace, [9], next_token=True).scores(0)[1] == pytest.approx(1)


def test_rare_experts_are_left_out_and_absent_markers_named() -> None:
    trace = trace_of(torch.tensor([[[0], [1], [0]]]), 2, ids=torch.tensor([[4, 5, 4]]))
    assert np.isnan(count_markers(trace, [5]).scores(0, least=2)[1])
    with pytest.raises(ConfigError, match="marker 77 does not occur"):
        count_markers(trace, [77])
    with pytest.raises(ConfigError, match="at least one"):
        count_markers(trace, [])
