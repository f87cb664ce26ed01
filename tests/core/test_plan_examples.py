"""Plans on numbers small enough to check by hand."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.experts import Experts


class Scale(Experts):
    """Expert e multiplies by ``e + 1``; remembers how many rows each expert saw."""

    def __init__(self, num_experts: int) -> None:
        super().__init__(num_experts)
        self.rows: list[int] = []

    def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
        self.rows = [t - s for s, t in pairwise(segments.bounds)]
        factor_R = torch.arange(1, self.num_experts + 1).repeat_interleave(torch.tensor(self.rows))
        return x_RD * factor_R.unsqueeze(1)

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return x_GLD * (gate_GN @ torch.arange(1, self.num_experts + 1, dtype=gate_GN.dtype)).view(-1, 1, 1)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_rectangular_plan() -> None:
    plan = SparsePlan.from_topk(torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.5, 0.25], [1.0, 2.0]]), 3)
    experts = Scale(3)
    # token 0: 0.5 * 3 * 10 + 0.25 * 1 * 10; token 1: 1 * 2 * 100 + 2 * 3 * 100
    assert experts.execute(column(10, 100), plan).flatten().tolist() == [17.5, 800.0]
    assert experts.rows == [1, 1, 2]
    assert plan.order_R.tolist() == [1, 2, 0, 3]
    assert plan.segments.bounds == (0, 1, 2, 4)
    assert plan.load_N().tolist() == [1, 1, 2]
    assert plan.load_N(torch.tensor([False, True])).tolist() == [0, 1, 1]
    assert plan.experts_per_token().tolist() == [2, 2]


def test_variable_number_of_experts_per_token() -> None:
    mask_TN = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])
    plan = SparsePlan.from_mask(torch.tensor([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0], [9.0, 0.5, 9.0]]), mask_TN)
    # token 0: (1 + 2 + 3) * 1; token 1: no expert at all; token 2: 0.5 * 2 * 4
    assert Scale(3).execute(column(1, 2, 4), plan).flatten().tolist() == [6.0, 0.0, 4.0]
    assert plan.experts_per_token().tolist() == [3, 0, 1]
    assert plan.load_N().tolist() == [1, 2, 1]


def test_dropped_assignments_count_as_load_but_are_not_computed() -> None:
    kept_TK = torch.tensor([[True, False], [False, False]])
    plan = SparsePlan.from_topk(torch.tensor([[0, 1], [0, 1]]), torch.ones(2, 2), 2, kept_TK)
    experts = Scale(2)
    assert experts.execute(column(5, 7), plan).flatten().tolist() == [5.0, 0.0]
    assert experts.rows == [1, 0]
    assert plan.load_N().tolist() == [2, 2]
    assert plan.experts_per_token().tolist() == [1, 0]


def test_scaling_the_input_of_an_expert() -> None:
    class Square(Scale):
        def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
            return x_RD.square()

    plan = SparsePlan.from_topk(torch.tensor([[0, 1]]), torch.tensor([[2.0, 3.0]]), 2, scale_input=True)
    assert Square(2).execute(column(5), plan).item() == (2 * 5) ** 2 + (3 * 5) ** 2


def test_an_input_of_its_own_for_each_assignment() -> None:
    plan = SparsePlan.from_topk(torch.tensor([[1, 0]]), torch.tensor([[1.0, 10.0]]), 2)
    assert Scale(2).execute(column(99), plan, x_AD=column(3, 4)).item() == 1 * 2 * 3 + 10 * 1 * 4


def test_data_of_assignments_reaches_the_experts_in_row_order() -> None:
    seen = {}

    class Reader(Scale):
        def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
            seen.update(segments.extra_R)
            return x_RD

    extra = {"bits": torch.tensor([2, 4, 8, 16])}
    plan = SparsePlan.from_topk(torch.tensor([[1, 0], [0, 1]]), torch.ones(2, 2), 2, extra_A=extra)
    Reader(2).execute(column(1, 2), plan)
    assert seen["bits"].tolist() == [4, 8, 2, 16]


def test_slices_of_segments() -> None:
    plan = SparsePlan.from_topk(torch.tensor([[2, 0], [1, 2]]), torch.ones(2, 2), 4)
    inner, start, stop = plan.segments.slice(1, 4)
    assert (inner.bounds, start, stop) == ((0, 1, 3, 3), 1, 4)
    assert inner.num_experts == 3


def test_soft_plan() -> None:
    # One group of two tokens, one slot for each of two experts.
    dispatch_GLS = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]])
    combine_GLS = torch.tensor([[[1.0, 0.0], [0.5, 0.25]]])
    plan = SoftPlan(dispatch_GLS, combine_GLS, 2)
    # slots: 10 and (10 + 30) / 2 = 20; after the experts 10 and 40
    assert Scale(2).execute(column(10, 30), plan).flatten().tolist() == [10.0, 0.5 * 10 + 0.25 * 40]
    assert plan.load_N().tolist() == [1.5, 0.25]
    assert plan.load_N(torch.tensor([False, True])).tolist() == [0.5, 0.25]
    assert plan.num_tokens == 2


def test_merge_plan() -> None:
    plan = MergePlan(torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64), num_tokens=4)
    assert Scale(2).execute(column(1, 2, 3, 4), plan).flatten().tolist() == [1.0, 2.0, 4.5, 6.0]
    assert plan.load_N().tolist() == [2 + 1, 1]
    assert plan.load_N(torch.tensor([True, False, True, True])).tolist() == [1 + 1, 1]
    assert plan.num_experts == 2
