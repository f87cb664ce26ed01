"""The experts interface in other precisions, under recomputation, compilation, adapters and data parallelism."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import experts_families
import libmoe
from experts_outcomes import (
    DOUBLE,
    assert_close,
    fresh_experts,
    mixtral,
    outcome,
    relative_error,
    routed,
    run_experts,
    tokens,
)
from two_ranks import in_two_ranks


@pytest.mark.parametrize(("family", "name"), [("mixtral", "MixtralExperts"), ("gpt_oss", "GptOssExperts")])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
def test_half_precision_is_as_exact_as_in_transformers(family: str, name: str, weights: torch.dtype) -> None:
    module = experts_families.experts_of(family, name)
    module._is_expert_parallel = False
    x_TD, index_TK, weight_TK = routed(module, 64, torch.float32)
    batch = x_TD.bfloat16(), index_TK, weight_TK.to(weights)
    module.bfloat16()
    ours, theirs = (run_experts(module, name, *batch) for name in ("libmoe", "batched_mm"))
    exact = run_experts(module.double(), "batched_mm", batch[0].double(), index_TK, batch[2].double())
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, c) <= max(1.5 * relative_error(b, c), 5e-3)


def test_autocast_computes_in_its_dtype_and_returns_that_of_the_input() -> None:
    module = fresh_experts()
    batch = routed(module, 64, torch.float32)
    exact = run_experts(module, "eager", *batch)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run_experts(module, name, *batch) for name in ("libmoe", "eager"))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert 1e-4 < relative_error(a, c.double()) <= 2 * relative_error(b, c.double())


def test_inputs_of_another_dtype_than_the_experts_are_converted_as_in_transformers() -> None:
    module = fresh_experts().bfloat16()
    x_TD, index_TK, weight_TK = routed(module, 16, torch.float32)
    ours, theirs = (run_experts(module, name, x_TD, index_TK, weight_TK) for name in ("libmoe", "grouped_mm"))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, 2e-2, 0.0)


def test_recomputing_activations_changes_no_gradient(model: nn.Module) -> None:
    model.train()
    output, plain, _ = outcome(model, "libmoe")
    model.gradient_checkpointing_enable()
    again, recomputed, ran = outcome(model, "libmoe")
    assert torch.equal(output, again)
    assert all(torch.equal(g, recomputed[name]) for name, g in plain.items())
    assert len(ran) == 2


def test_inference_mode_gives_the_same_outputs(model: nn.Module) -> None:
    expected = outcome(model, "libmoe")[0]
    with torch.inference_mode():
        assert_close(model(tokens()).logits, expected, 1e-6, 0.0)


def test_compiled_models_step_out_of_the_graph_for_the_experts(calls: dict[str, int]) -> None:
    module = fresh_experts()
    batch = routed(module, 9, torch.float32)
    expected = run_experts(module, "libmoe", *batch)[0]
    torch._dynamo.reset()
    found = torch.compile(lambda *inputs: 2 * module(*inputs), backend="eager")(*batch)
    assert_close(found.detach(), 2 * expected, 1e-6, 0.0)
    assert calls["ffn"] == 2


def test_parametrised_weights_get_their_gradients() -> None:
    """Adapters on expert weights, as peft puts them, are parametrisations."""

    class LowRank(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.a = nn.Parameter(0.1 * torch.randn(*weight.shape[:2], 2, dtype=weight.dtype))
            self.b = nn.Parameter(0.1 * torch.randn(weight.shape[0], 2, weight.shape[2], dtype=weight.dtype))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.a @ self.b

    module = fresh_experts().double().requires_grad_(False)
    for name in ("gate_up_proj", "down_proj"):
        nn.utils.parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))
    batch = routed(module, 9, torch.float64)
    adapters = [p for p in module.parameters() if p.requires_grad]
    gradients = {}
    for implementation in ("libmoe", "batched_mm"):
        module.config._experts_implementation = implementation
        gradients[implementation] = torch.autograd.grad(module(*batch).square().sum(), adapters)
    for ours, theirs in zip(*gradients.values(), strict=True):
        assert_close(ours, theirs, DOUBLE, 0.0)


def train_in_two(rank: int, folder: Path) -> None:
    model = libmoe.accelerate(DistributedDataParallel(copy.deepcopy(mixtral()).double()))
    model(tokens()[rank : rank + 1]).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    safetensors.torch.save_file(gradients, folder / f"{rank}.safetensors")


@pytest.mark.distributed
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    model = copy.deepcopy(mixtral()).double()
    in_two_ranks(train_in_two, tmp_path)
    model.set_experts_implementation("eager")
    (0.5 * model(tokens()).logits.square().sum()).backward()
    for rank in range(2):
        found = safetensors.torch.load_file(tmp_path / f"{rank}.safetensors")
        for name, p in model.named_parameters():
            assert_close(found[name], p.grad, DOUBLE, 1e-3, name)
