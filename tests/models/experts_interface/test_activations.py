"""Activations that our kernels know are fused; any other module or function is called, hooks included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from experts_outcomes import (
    DOUBLE,
    assert_close,
    fresh_experts,
    routed,
    run_experts,
)
from libmoe.ops.activations import ACTIVATIONS


@use_experts_implementation(has_bias=True, has_gate=False)
class PlainExperts(nn.Module):
    """Experts without a gate and with biases, whose activation is whatever the test puts there."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts, self.act_fn = 4, config.act_fn
        self.up_proj, self.up_proj_bias = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 6))
        self.down_proj, self.down_proj_bias = (
            nn.Parameter(torch.randn(4, 5, 6)),
            nn.Parameter(torch.randn(4, 5)),
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        raise AssertionError("the registered function computes, never this")


KNOWN = {name: transformers.activations.ACT2FN[name] for name in ACTIVATIONS}
FUNCTIONS = {"F.silu": nn.functional.silu, "torch.tanh": torch.tanh}
UNKNOWN = {"mish": nn.Mish(), "softplus": nn.functional.softplus, "half": lambda x: x / 2}


@pytest.mark.parametrize("activation", [*KNOWN, *FUNCTIONS, *UNKNOWN])
def test_known_activations_are_fused_and_others_called(activation: str, calls: dict[str, int]) -> None:
    config = SimpleNamespace(act_fn={**KNOWN, **FUNCTIONS, **UNKNOWN}[activation])
    module = PlainExperts(config).double()
    batch = routed(module, 9, torch.float64)
    ours = run_experts(module, "libmoe", *batch)
    assert calls == (
        {"ffn": 0, "grouped_linear": 2} if activation in UNKNOWN else {"ffn": 1, "grouped_linear": 0}
    )
    for a, b in zip(ours, run_experts(module, "batched_mm", *batch), strict=True):
        assert_close(a, b, DOUBLE, 1e-3)


def test_hooks_on_the_activation_see_it() -> None:
    module = fresh_experts()
    batch = routed(module, 9, torch.float32)
    unseen = run_experts(module, "libmoe", *batch)[0]
    shapes = []
    module.act_fn.register_forward_hook(lambda m, inputs, output: shapes.append(tuple(output.shape)))
    assert_close(run_experts(module, "libmoe", *batch)[0], unseen, 1e-6, 0.0)
    assert shapes == [(18, module.down_proj.shape[2])]
