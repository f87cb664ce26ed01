"""What the roofline says of activating fewer experts (arXiv 2505.03531 §3)."""

from __future__ import annotations

import itertools

import pytest

from libmoe.bench.kernels.floors import Ceiling, expected_experts, floor
from libmoe.bench.kernels.shapes import Case, Shape

H200 = Ceiling(990e12, 4.8e12)
LOADS = [2**i for i in range(16)]
# DeepSeek-V2-Lite and V3: width, hidden width of an expert, experts, experts per token.
MODELS = {"v2-lite": (2048, 1408, 64, 6), "v3": (7168, 2048, 256, 8)}


def seconds(tokens: int, dim: int, hidden: int, num_experts: int, top_k: int) -> float:
    shape = Shape(tokens, dim, hidden, num_experts, top_k)
    return floor(Case(shape, "forward", "bf16", "uniform"), expected_experts(shape), H200).seconds


@pytest.mark.parametrize("model", MODELS)
def test_latency_rises_with_the_load_and_per_token_falls_until_it_is_flat(model: str) -> None:
    total = [seconds(tokens, *MODELS[model]) for tokens in LOADS]
    each = [s / tokens for s, tokens in zip(total, LOADS, strict=True)]
    assert all(a < b for a, b in itertools.pairwise(total))
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(each))
    assert each[-1] == pytest.approx(each[-2], rel=1e-3) and each[0] > 10 * each[-1]


@pytest.mark.parametrize("model", MODELS)
def test_a_dense_layer_as_wide_as_the_active_experts_is_never_slower_and_as_fast_for_one_token(model: str) -> None:
    dim, hidden, _, top_k = MODELS[model]
    for tokens in LOADS:
        dense, sparse = seconds(tokens, dim, top_k * hidden, 1, 1), seconds(tokens, *MODELS[model])
        assert dense <= sparse
        if tokens == 1:  # but for the token, which each of its experts reads and writes
            assert dense == pytest.approx(sparse, rel=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_one_token_touches_its_own_experts_and_many_touch_all(model: str) -> None:
    dim, hidden, num_experts, top_k = MODELS[model]
    touched = [expected_experts(Shape(tokens, dim, hidden, num_experts, top_k)) for tokens in LOADS]
    assert touched[0] == pytest.approx(top_k)
    assert touched[-1] == pytest.approx(num_experts) and touched == sorted(touched)


@pytest.mark.parametrize("model", MODELS)
def test_the_gain_of_fewer_experts_is_large_for_few_tokens_and_for_many_and_small_between(model: str) -> None:
    dim, hidden, num_experts, top_k = MODELS[model]
    gain = [
        seconds(tokens, dim, hidden, num_experts, top_k) / seconds(tokens, dim, hidden, num_experts, 2)
        for tokens in LOADS
    ]
    ratio, lowest = top_k / 2, min(gain)
    middle = gain.index(lowest)
    assert gain[0] == pytest.approx(ratio, rel=0.01) and gain[-1] == pytest.approx(ratio, rel=0.01)
    assert 0 < middle < len(gain) - 1 and lowest < 1.1  # counting operations alone, the gain is the ratio everywhere
    assert gain[: middle + 1] == sorted(gain[: middle + 1], reverse=True) and gain[middle:] == sorted(gain[middle:])
