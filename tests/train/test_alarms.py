from __future__ import annotations

import json
import math

import pytest
import torch

from libmoe.core.statistics import LayerLoad
from libmoe.train.alarms import PATIENCE, SPIKE_WINDOW, Alarms
from libmoe.train.metrics import balance


def record(load: list[float], loss: float = 2.0) -> dict:
    counts = torch.tensor(load)
    return {"loss": loss, "balance": balance({3: LayerLoad(counts, counts.sum())})}


def test_balance_of_an_even_and_of_a_collapsed_load() -> None:
    even = record([5.0, 5.0, 5.0, 5.0])["balance"]["3"]
    assert even == {
        "load": [0.25] * 4,
        "entropy": pytest.approx(math.log(4)),
        "max_violation": 0.0,
        "dead": 0,
    }
    collapsed = record([20.0, 0.0, 0.0, 0.0])["balance"]["3"]
    assert (collapsed["entropy"], collapsed["max_violation"], collapsed["dead"]) == (0.0, 3.0, 3)


def test_a_layer_that_nobody_was_routed_to_is_all_dead_and_collapsed() -> None:
    nobody = record([0.0, 0.0, 0.0])["balance"]["3"]
    assert nobody == {"load": [0.0] * 3, "entropy": 0.0, "max_violation": -1.0, "dead": 3}
    alarms = Alarms()
    kinds = [a["kind"] for _ in range(PATIENCE) for a in alarms.check(record([0.0, 0.0, 0.0]))]
    assert kinds == ["dead_experts", "collapse"]


def test_an_expert_is_dead_only_after_several_records_and_is_reported_once() -> None:
    alarms = Alarms()
    found = [alarms.check(record([10.0, 9.0, 11.0, 0.0])) for _ in range(2 * PATIENCE)]
    assert [len(f) for f in found] == [0] * (PATIENCE - 1) + [1] + [0] * PATIENCE
    assert found[PATIENCE - 1][0]["kind"] == "dead_experts"
    assert "layer 3: expert(s) 3 get almost no tokens" in found[PATIENCE - 1][0]["message"]


def test_an_expert_that_recovers_is_not_reported() -> None:
    alarms = Alarms()
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            assert not alarms.check(record([10.0, 10.0, 10.0, 0.0]))
        assert not alarms.check(record([10.0, 10.0, 10.0, 5.0]))


def test_collapse_is_reported() -> None:
    alarms = Alarms()
    kinds = [a["kind"] for _ in range(PATIENCE) for a in alarms.check(record([100.0, 2.0, 2.0, 2.0]))]
    assert kinds == ["collapse"]


def test_a_loss_spike_is_reported_and_noise_is_not() -> None:
    alarms = Alarms()
    for i in range(3 * SPIKE_WINDOW):
        assert not alarms.check(record([1.0, 1.0], loss=2.0 + 0.1 * math.sin(i)))
    spike = alarms.check(record([1.0, 1.0], loss=6.0))
    assert [a["kind"] for a in spike] == ["loss_spike"]
    assert "from 2.0" in spike[0]["message"]


def test_what_happens_every_now_and_then_is_reported_once() -> None:
    """As where batches are of kinds that cost differently."""
    alarms = Alarms()
    found = [alarms.check(record([1.0, 1.0], loss=0.6 if i % 15 == 14 < i else 0.2 + i % 3 / 100)) for i in range(90)]
    assert sum(map(len, found)) == 1


def test_state_survives_json() -> None:
    """Alarms after a resume come at the steps at which they would have come."""
    whole, first = Alarms(), Alarms()
    bad = record([10.0, 0.0])
    for _ in range(PATIENCE - 2):
        whole.check(bad), first.check(bad)
    second = Alarms()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(3):
        assert whole.check(bad) == second.check(bad)
