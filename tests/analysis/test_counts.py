"""One pass adds up what counting row by row adds up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from libmoe.analysis import Trace, TraceRecorder
from libmoe.analysis.counts import BINS, count
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing

LAYERS = {0: 5, 2: 4, 3: 6}
"""Experts by layer; numbers may have gaps."""


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Four forward passes with variable k, drops and tokens without experts."""
    rng = torch.Generator().manual_seed(0)
    recorder = TraceRecorder(scores=0.2)
    for forward in range(4):
        context = ForwardContext({"input_ids": torch.randint(0, 9, (2, 30), generator=rng)})
        for layer, experts in LAYERS.items():
            scores_TN = torch.rand(60, experts, generator=rng).softmax(1)
            mask_TN = torch.rand(60, experts, generator=rng) < 0.3
            plan = SparsePlan.from_mask(scores_TN, mask_TN)
            if forward == 1:
                plan.kept_A = torch.rand(len(plan.token_A), generator=rng) < 0.7
            recorder(context.layer(layer, (2, 30), False), Routing(plan, scores_TN=scores_TN))
    return recorder.trace()


@pytest.mark.parametrize("size", [1 << 17, 37])
def test_sums_are_those_of_the_rows(trace: Trace, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace.pieces, "__kwdefaults__", Trace.pieces.__kwdefaults__ | {"size": size})
    found, table = count(trace, ["token", "position"]), trace.to_pandas()
    for layer, experts in LAYERS.items():
        counts, mine = found.layers[layer], table[table["layer"] == layer]
        assert counts.tokens == 240
        assert counts.load_N.tolist() == [int((mine["expert"] == e).sum()) for e in range(experts)]
        assert counts.dropped_N.tolist() == [
            int(((mine["expert"] == e) & ~mine["kept"]).sum()) for e in range(experts)
        ]
        assert counts.dropped_N.sum() > 0
        np.testing.assert_allclose(
            counts.weight_N, [mine["weight"][mine["expert"] == e].sum() for e in range(experts)], rtol=1e-5
        )
        first = mine[mine["rank"] == 0]
        assert counts.first_N.tolist() == [int((first["expert"] == e).sum()) for e in range(experts)]
        per_token = mine.groupby("uid").size().to_numpy()
        assert counts.experts_K[1:].tolist() == [
            int((per_token == k).sum()) for k in range(1, len(counts.experts_K))
        ]
        assert counts.experts_K.sum() == 240 and counts.experts_K[0] == 240 - len(per_token)
        for name in ("token", "position"):
            for g, value in enumerate(found.values[name]):
                group = mine[mine[name] == value]["expert"]
                assert counts.by[name][g].tolist() == [int((group == e).sum()) for e in range(experts)]


@pytest.mark.parametrize("size", [1 << 17, 37])
def test_pairs_within_a_layer_and_between_layers(
    trace: Trace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trace.pieces, "__kwdefaults__", Trace.pieces.__kwdefaults__ | {"size": size})
    found, table = count(trace), trace.to_pandas()
    sets = {key: set(group) for key, group in table.groupby(["layer", "uid"])["expert"]}
    for layer, after in itertools.zip_longest(LAYERS, [2, 3]):
        counts = found.layers[layer]
        together = np.zeros((LAYERS[layer], LAYERS[layer]), int)
        following = None if after is None else np.zeros((LAYERS[layer], LAYERS[after]), int)
        for uid in range(240):
            here = sets.get((layer, uid), set())
            for i in here:
                together[i, list(here)] += 1
                if following is not None:
                    following[i, list(sets.get((after, uid), set()))] += 1
        assert np.array_equal(counts.coactive_NN, together)
        assert counts.next_NM is None if following is None else np.array_equal(counts.next_NM, following)


def test_uncertainty_is_summed_over_tokens_with_scores(trace: Trace) -> None:
    counts = count(trace).layers[2]
    rows = np.concatenate([p.row["entropy"] for p in trace.pieces(layers=[2])])
    assert counts.scored == 240 == counts.entropy_B.sum() == counts.margin_B.sum()
    assert counts.entropy_sum == pytest.approx(rows.sum(), rel=1e-5)
    place = np.average(np.arange(BINS) + 0.5, weights=counts.entropy_B) / BINS
    assert place == pytest.approx(rows.mean() / np.log(4), abs=0.02)


def test_one_layer_alone_and_an_unknown_column(trace: Trace) -> None:
    assert list(count(trace, layers=[2]).layers) == [2]
    with pytest.raises(ConfigError, match="domain"):
        count(trace, ["domain"])
