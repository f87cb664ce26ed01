"""Change between checkpoints against hand-computed cases and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis.metrics import change
from libmoe.analysis.trace import Trace
from libmoe.core.errors import DataError
from routed import trace_of

BEFORE = np.array([[0, 1], [2, 3], [4, -1], [-1, -1]])
AFTER = np.array([[1, 0], [2, 5], [-1, -1], [-1, -1]])


def test_a_case_by_hand() -> None:
    assert change.overlap(BEFORE, AFTER).tolist() == [1, 0.5, 0, 1]
    assert change.jaccard(BEFORE, AFTER).tolist() == [1, pytest.approx(1 / 3), 0, 1]
    assert change.first_changed(BEFORE, AFTER).tolist() == [1, 0, 1, 0]
    assert change.set_changed(BEFORE, AFTER).tolist() == [0, 1, 1, 0]
    assert change.switched(BEFORE, AFTER).tolist() == [1, 0.5, 1, 0]


def test_a_checkpoint_with_itself_is_saturated_and_switches_nothing() -> None:
    trace = trace_of({0: torch.rand(3, 50, 8).topk(2).indices, 1: torch.rand(3, 50, 8).topk(2).indices}, 8)
    for found in change.compare(trace, trace).values():
        assert (found.tokens, found.saturation, found.jaccard, found.position_match) == (150, 1, 1, 1)
        assert (found.first_changed, found.set_changed, found.switch_fraction) == (0, 0, 0)


def test_saturation_of_independent_routers_is_k_over_n() -> None:
    ours, theirs = (trace_of(torch.rand(20, 500, 64).topk(6).indices, 64) for _ in range(2))
    assert change.compare(ours, theirs)[0].saturation == pytest.approx(6 / 64, abs=0.005)


@pytest.mark.parametrize("size", [1 << 17, 7])
def test_pieces_of_any_size_give_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (torch.rand(2, 30, 5).topk(2).indices for _ in range(2))
    ours, theirs = trace_of({0: first, 3: second}, 5), trace_of({0: second, 3: second}, 5)
    monkeypatch.setattr(Trace.pieces, "__kwdefaults__", Trace.pieces.__kwdefaults__ | {"size": size})
    found = change.compare(ours, theirs)
    rows = first.reshape(-1, 2).numpy(), second.reshape(-1, 2).numpy()
    assert found[0].saturation == pytest.approx(change.overlap(*rows).mean())
    assert found[0].switch_fraction == pytest.approx(change.switched(*rows).mean())
    assert found[3].saturation == 1 and found[0].tokens == found[3].tokens == 60


def test_traces_of_other_tokens_are_refused_with_the_first_difference() -> None:
    expert = torch.zeros(1, 4, 1).long()
    ours = trace_of(expert, 2, ids=torch.tensor([[1, 2, 3, 4]]))
    with pytest.raises(DataError, match="token of token 2 is 3 in one and 9 in the other"):
        change.compare(ours, trace_of(expert, 2, ids=torch.tensor([[1, 2, 9, 4]])))
    with pytest.raises(DataError, match="4 and 3 tokens"):
        change.compare(ours, trace_of(expert[:, :3], 2, ids=torch.tensor([[1, 2, 3]])))
    with pytest.raises(DataError, match="share no MoE layer"):
        change.compare(ours, trace_of({5: expert}, 2, ids=torch.tensor([[1, 2, 3, 4]])))
