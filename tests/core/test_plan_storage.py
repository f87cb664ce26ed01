"""Plans as data: copies, files, and a kind that nobody here has heard of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from torch import Tensor

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.core.plan import MergePlan, Plan, Segments, SoftPlan, SparsePlan, plan_from_tensors
from libmoe.core.routing import Router, Routing
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer

PLANS = {
    "top-k": lambda: SparsePlan.from_topk(torch.tensor([[1, 0], [2, 1]]), torch.rand(2, 2), 3),
    "dropped": lambda: SparsePlan.from_topk(
        torch.tensor([[1, 0]]),
        torch.rand(1, 2),
        3,
        torch.tensor([[True, False]]),
        scale_input=True,
        extra_A={"bits": torch.tensor([4, 8])},
    ),
    "variable": lambda: SparsePlan.from_mask(torch.rand(4, 3), torch.rand(4, 3) < 0.5),
    "empty": lambda: SparsePlan.from_topk(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), 3),
    "soft": lambda: SoftPlan(torch.rand(2, 6, 3).transpose(1, 2), torch.rand(2, 3, 6), 3),
    "merge": lambda: MergePlan(torch.rand(2, 3), 8),
}


def same(plan: Plan, other: Plan) -> bool:
    ours, theirs = plan.to_tensors(), other.to_tensors()
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return equal and type(plan) is type(other)


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_survives_a_file(kind: str, tmp_path: Path) -> None:
    plan = PLANS[kind]()
    safetensors.torch.save_file(plan.to_tensors(), tmp_path / "plan.safetensors")
    again = plan_from_tensors(safetensors.torch.load_file(tmp_path / "plan.safetensors"))
    assert same(again, plan)
    for name in ("num_tokens", "num_experts", "k", "scale_input"):
        if hasattr(plan, name):
            value = getattr(again, name)
            assert value == getattr(plan, name)
            assert type(value) is type(getattr(plan, name))


def test_tensors_that_share_memory_can_be_saved_too(tmp_path: Path) -> None:
    both_GLS = torch.rand(1, 4, 4)
    safetensors.torch.save_file(SoftPlan(both_GLS, both_GLS, 2).to_tensors(), tmp_path / "plan.safetensors")


@pytest.mark.parametrize("kind", PLANS)
def test_map_changes_a_copy_and_forgets_cached_orders(kind: str) -> None:
    plan = PLANS[kind]()
    before = plan.map(torch.clone)
    if isinstance(plan, SparsePlan):
        assert plan.segments.bounds[-1] == len(plan.order_R)
        flipped = plan.map(lambda t: t.flip(0))
        assert flipped.expert_A.tolist() == plan.expert_A.tolist()[::-1]
        assert flipped.extra_A.keys() == plan.extra_A.keys()
        kept = flipped.expert_A if flipped.kept_A is None else flipped.expert_A[flipped.kept_A]
        assert flipped.expert_A[flipped.order_R].tolist() == sorted(kept.tolist())
    assert same(plan, before)


def test_map_keeps_gradients() -> None:
    weight_TK = torch.rand(2, 1, requires_grad=True)
    plan = SparsePlan.from_topk(torch.tensor([[0], [1]]), weight_TK, 2)
    assert plan.map(lambda t: t * 1).weight_A.requires_grad
    assert not plan.map(torch.detach).weight_A.requires_grad


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'dense'.*merge.*soft.*sparse"):
        plan_from_tensors({"kind": torch.tensor(list(b"dense"), dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match="none"):
        plan_from_tensors({})


def test_plans_can_be_compared_and_hashed_by_identity() -> None:
    plan, other = PLANS["top-k"](), PLANS["top-k"]()
    assert plan != other
    assert len({plan, other}) == 2


@dataclass(eq=False)
class ChainPlan(Plan):
    """Every token passes all experts, one after the other, with a residual of strength ``mix``."""

    kind: ClassVar[str] = "chain"

    strength_T: Tensor
    num_experts: int
    mix: float

    @property
    def num_tokens(self) -> int:
        return self.strength_T.shape[0]

    def execute(self, experts, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        y_TD, n = x_TD, self.num_experts
        for e in range(n):
            bounds = (0,) * (e + 1) + (len(y_TD),) * (n - e)
            y_TD = self.mix * y_TD + self.strength_T.unsqueeze(1) * experts.forward_rows(
                y_TD, Segments(bounds)
            )
        return y_TD

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        tokens = self.num_tokens if mask_T is None else int(mask_T.sum())
        return torch.full((self.num_experts,), float(tokens))


class ChainRouter(Router):
    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__(num_experts)
        self.weight = torch.nn.Parameter(torch.randn(dim))

    def route(self, x_TD: Tensor, ctx) -> Routing:
        return Routing(ChainPlan((x_TD @ self.weight).sigmoid(), self.num_experts, 0.5))


def test_a_fourth_kind_of_plan_runs_through_the_layer_untouched() -> None:
    experts = FFNExperts(3, 4, 5, init_std=None).double()
    layer = MoELayer(ChainRouter(4, 3).double(), experts)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = x
    for e in range(3):
        expected = 0.5 * expected + (x @ layer.router.weight).sigmoid().unsqueeze(-1) * experts.materialise(
            e
        )(expected)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert layer.router.weight.grad.abs().sum() > 0


def test_a_fourth_kind_of_plan_is_stored_like_the_others() -> None:
    plan = ChainPlan(torch.rand(3), 2, 0.25)
    again = plan_from_tensors(plan.to_tensors())
    assert isinstance(again, ChainPlan)
    assert again.mix == 0.25  # a fraction must not be cut to an integer
    assert torch.equal(again.strength_T, plan.strength_T)


def test_a_base_plan_says_what_it_lacks() -> None:
    class Empty(Plan):
        kind = "empty"

    with pytest.raises(NotImplementedError, match=r"Empty defines no execute"):
        Empty().execute(None, None)
    with pytest.raises(ConfigError, match="averaged in parameter space"):
        from libmoe.experts import ZeroExperts

        ZeroExperts(2).execute(torch.rand(4, 3), MergePlan(torch.rand(1, 2), 4))
