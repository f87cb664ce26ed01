"""From assignments to rows and back: against sorting and summing in plain Python."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from libmoe.core.dispatch import Dispatch, Segments
from libmoe.core.errors import LibMoEError

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def _seed() -> None:
    GENERATOR.manual_seed(0)


def rectangular(tokens: int, num_experts: int, k: int, kept: float = 1.0) -> Dispatch:
    expert_A = torch.randint(num_experts, (tokens * k,), generator=GENERATOR)
    kept_A = torch.rand(tokens * k, generator=GENERATOR) < kept if kept < 1 else None
    return Dispatch(torch.arange(tokens).repeat_interleave(k), expert_A, tokens, num_experts, k, kept_A)


def general(tokens: int, num_experts: int, assignments: int, kept: float = 1.0) -> Dispatch:
    token_A = torch.randint(max(tokens, 1), (assignments,), generator=GENERATOR)
    expert_A = torch.randint(num_experts, (assignments,), generator=GENERATOR)
    kept_A = torch.rand(assignments, generator=GENERATOR) < kept if kept < 1 else None
    return Dispatch(token_A, expert_A, tokens, num_experts, None, kept_A)


CASES = {
    "top-2": lambda: rectangular(9, 4, 2),
    "top-1": lambda: rectangular(9, 4, 1),
    "top-2 with drops": lambda: rectangular(9, 4, 2, kept=0.6),
    "any order": lambda: general(9, 4, 25),
    "any order with drops": lambda: general(9, 4, 25, kept=0.6),
    "everything dropped": lambda: rectangular(5, 4, 2, kept=0.0),
    "no tokens": lambda: rectangular(0, 4, 2),
    "no assignments": lambda: general(3, 4, 0),
    "no tokens and no k": lambda: general(0, 4, 0),
    "no experts for a token": lambda: rectangular(3, 4, 0),
    "one expert": lambda: rectangular(9, 1, 1),
    "255 experts with drops": lambda: rectangular(600, 255, 2, kept=0.7),
    "256 experts with drops": lambda: rectangular(600, 256, 2, kept=0.7),
    "65535 experts with drops": lambda: general(20_000, 65_535, 30_000, kept=0.9),
    "65536 experts with drops": lambda: general(20_000, 65_536, 30_000, kept=0.9),
}


@pytest.fixture(params=CASES)
def dispatch(request: pytest.FixtureRequest) -> Dispatch:
    return CASES[request.param]()


def kept_numbers(dispatch: Dispatch) -> np.ndarray:
    numbers = np.arange(len(dispatch.token_A))
    return numbers if dispatch.kept_A is None else numbers[dispatch.kept_A.numpy()]


def expected_order(dispatch: Dispatch) -> np.ndarray:
    """Kept assignments by expert, those of one expert in their own order."""
    kept = kept_numbers(dispatch)
    return kept[np.lexsort((kept, dispatch.expert_A.numpy()[kept]))]


def test_rows_are_kept_assignments_stably_sorted_by_expert(dispatch: Dispatch) -> None:
    order_R = expected_order(dispatch)
    assert dispatch.order_R.tolist() == order_R.tolist()
    assert dispatch.order_R.dtype == torch.int64
    assert dispatch.token_R.tolist() == dispatch.token_A.numpy()[order_R].tolist()


def test_dropped_assignments_are_the_tail_of_the_order(dispatch: Dispatch) -> None:
    rows = len(dispatch.order_R)
    assert sorted(dispatch.order_A.tolist()) == list(range(len(dispatch.token_A)))
    if dispatch.kept_A is not None:
        assert dispatch.kept_A[dispatch.order_A[:rows]].all()
        assert not dispatch.kept_A[dispatch.order_A[rows:]].any()
    assert torch.equal(dispatch.order_A[dispatch.place_A], torch.arange(len(dispatch.token_A)))


def test_offsets_count_rows_per_expert(dispatch: Dispatch) -> None:
    loads_N = np.bincount(dispatch.expert_A.numpy()[kept_numbers(dispatch)], minlength=dispatch.num_experts)
    bounds = [0, *np.cumsum(loads_N).tolist()]
    assert dispatch.offsets.dtype == torch.int64
    assert dispatch.offsets.tolist() == bounds
    assert dispatch.segments.bounds == tuple(bounds)
    assert dispatch.segments.num_experts == dispatch.num_experts


def rows_of_tokens(dispatch: Dispatch) -> list[list[tuple[int, int]]]:
    """(row, assignment) of each token, as combine says."""
    combine = dispatch.combine
    assignment_A = torch.arange(len(combine.row_A)) if combine.assignment_A is None else combine.assignment_A
    pairs = list(zip(combine.row_A.tolist(), assignment_A.tolist(), strict=True))
    starts = combine.start_T1.tolist()
    assert len(starts) == dispatch.num_tokens + 1 and starts[0] == 0 and starts[-1] == len(pairs)
    return [pairs[s:t] for s, t in pairwise(starts)]


def test_each_token_is_combined_in_the_order_of_its_assignments(dispatch: Dispatch) -> None:
    row_of = {a: r for r, a in enumerate(expected_order(dispatch).tolist())}
    expected: list[list[tuple[int, int]]] = [[] for _ in range(dispatch.num_tokens)]
    token_A = dispatch.token_A.tolist()
    for a in kept_numbers(dispatch).tolist():
        expected[token_A[a]].append((row_of[a], a))
    assert rows_of_tokens(dispatch) == expected
    weight_A = torch.rand(len(dispatch.token_A))
    assert dispatch.combine.weights(weight_A).tolist() == [
        float(weight_A[a]) for pairs in expected for _, a in pairs
    ]


def test_the_sum_of_rows_is_the_sum_over_tokens(dispatch: Dispatch) -> None:
    y_RD = torch.randn(len(dispatch.order_R), 2, dtype=torch.float64)
    weight_A = torch.rand(len(dispatch.token_A), dtype=torch.float64)
    if dispatch.kept_A is not None:
        weight_A[~dispatch.kept_A] = float("nan")
    order_R = torch.from_numpy(expected_order(dispatch))
    for weights, weight_R in ((weight_A, weight_A[order_R]), (None, torch.ones(len(order_R)))):
        expected_TD = torch.zeros(dispatch.num_tokens, 2, dtype=torch.float64)
        expected_TD.index_add_(0, dispatch.token_A[order_R], y_RD * weight_R.unsqueeze(1))
        torch.testing.assert_close(dispatch.sum_rows(y_RD, weights), expected_TD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_a_rectangle_is_only_a_shortcut(kept: float) -> None:
    fast = rectangular(17, 5, 3, kept)
    slow = replace(fast, k=None)
    for name in ("order_A", "order_R", "token_R", "offsets", "place_A"):
        assert torch.equal(getattr(fast, name), getattr(slow, name)), name
    assert rows_of_tokens(fast) == rows_of_tokens(slow)
    y_RD, weight_A = torch.randn(len(fast.order_R), 4), torch.rand(51)
    torch.testing.assert_close(fast.sum_rows(y_RD, weight_A), slow.sum_rows(y_RD, weight_A))


def test_a_tensor_that_is_not_plain_is_sorted_by_torch() -> None:
    class Watched(Tensor):
        pass

    plain = rectangular(9, 4, 2, kept=0.6)
    watched = replace(plain, expert_A=plain.expert_A.as_subclass(Watched))
    assert torch.equal(watched.order_A.as_subclass(Tensor), plain.order_A)
    assert watched.offsets.tolist() == plain.offsets.tolist()


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("expert", [-1, 4, 5, 256, 2**16])
def test_an_expert_that_does_not_exist_is_refused(expert: int, drops: bool) -> None:
    """Sorting small keys must not turn it into one that does, nor into a dropped assignment."""
    plain = rectangular(9, 4, 2)
    plain.expert_A[5] = expert
    if drops:
        plain = replace(plain, kept_A=torch.arange(18) % 3 != 0)
    with pytest.raises(LibMoEError, match=f"expert {expert}\\b"):
        _ = plain.segments


def test_data_of_assignments_comes_in_row_order() -> None:
    plain = rectangular(9, 4, 2, kept=0.6)
    given = replace(plain, extra_A={"bits": torch.arange(18)})
    assert torch.equal(given.segments.extra_R["bits"], plain.order_R)


# -- segments --------------------------------------------------------------------------------------------
def test_segments_say_the_same_as_bounds_and_as_offsets() -> None:
    bounds = (0, 3, 3, 7)
    for segments in (Segments(bounds), Segments(offsets=torch.tensor(bounds))):
        assert segments.num_experts == 3
        assert segments.bounds == bounds
        assert segments.offsets().tolist() == list(bounds)
        assert segments.offsets("meta").device.type == "meta"
    with pytest.raises(TypeError, match="bounds or offsets"):
        Segments()


def test_a_slice_of_segments_starts_at_zero() -> None:
    segments = Segments((0, 3, 3, 7, 9), {"scale": torch.arange(9)})
    inner, start, stop = segments.slice(1, 3)
    assert (inner.bounds, start, stop) == ((0, 0, 4), 3, 7)
    assert inner.extra_R["scale"].tolist() == [3, 4, 5, 6]
