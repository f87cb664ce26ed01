"""LoRA experts of one linear, whoever chooses among them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from instance_gated import Make
from libmoe.core.plan import SparsePlan, plan_from_tensors
from libmoe.peft import GroupPlan, LoRAExpertsLinear
from libmoe.testing import check_experts


def test_dropout_is_of_the_experts_input_alone(frozen: Make) -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(64, 8), 2, 4, nn.Identity(), dropout=0.5)
    linear.lora_B.data.normal_()
    x = torch.randn(1, 500, 64)
    choose = torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]])
    noisy, clean = (linear.train(mode).forward_groups(x, *choose) for mode in (True, False))
    assert not torch.allclose(noisy, clean)
    slope = float((noisy * clean).sum() / clean.square().sum())
    assert slope == pytest.approx(1, abs=0.1)  # what is kept is doubled


def test_the_linear_keeps_the_contract_of_experts() -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(16, 16), 4, 3, nn.Identity(), alpha=5.0)
    linear.lora_B.data.normal_()
    assert "has the gradients of its materialised experts" in check_experts(linear, 16)
    bound = math.sqrt(6 / (1 + 5) / (16 * 3))  # fan_in of a stacked tensor is all but its first dimension
    assert linear.lora_A.abs().max() <= bound and linear.lora_A.abs().max() > 0.95 * bound


def test_another_gate_may_choose_token_by_token() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> SparsePlan:
            tokens = x.shape[:-1].numel()
            expert_TK = torch.stack([torch.arange(tokens) % 3, torch.full((tokens,), 3)], 1)
            return SparsePlan.from_topk(expert_TK, torch.full((tokens, 2), 0.5, dtype=x.dtype), 4)

    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(6, 5), 4, 2, Gate()).double()
    linear.lora_B.data.normal_()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = linear.base(x).clone()
    for t in range(8):
        for expert in (t % 3, 3):
            expected[t // 4, t % 4] += 0.5 * linear.materialise(expert)(x[t // 4, t % 4])
    torch.testing.assert_close(linear(x), expected)


def test_a_plan_for_groups_is_the_plan_of_its_tokens() -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(6, 5), 4, 2, nn.Identity()).double()
    linear.lora_B.data.normal_()
    plan = GroupPlan(torch.tensor([[0, 2], [3, 1]]), torch.rand(2, 2).double(), 10, 4)
    x = torch.randn(10, 6, dtype=torch.float64)
    torch.testing.assert_close(plan.execute(linear, x), plan.spread().execute(linear, x))
    mask = torch.arange(10) != 9
    torch.testing.assert_close(plan.load_N(mask), plan.spread().load_N(mask))
    torch.testing.assert_close(plan.load_N(), plan.spread().load_N())
    back = plan_from_tensors(plan.to_tensors())
    torch.testing.assert_close(back.execute(linear, x), plan.execute(linear, x))
