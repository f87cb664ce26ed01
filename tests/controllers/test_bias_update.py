"""Balancing by selection biases (arXiv 2408.15664)."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.controllers import BiasUpdate, StepInfo
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.core.statistics import LayerLoad, StepStatistics

N, D = 8, 16


def build(*names: str, **sizes: int) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(
        libmoe.create(name, num_experts=N, **sizes).build_layer(Site(D, 24, index=i))
        for i, name in enumerate(names)
    )


def load(*counts: float) -> LayerLoad:
    return LayerLoad(torch.tensor(counts, dtype=torch.float32), torch.tensor(sum(counts) / 2))


def test_each_bias_moves_by_gamma_towards_the_mean_load() -> None:
    model = build("deepseek-v3")
    info = StepInfo(model, loads={0: load(5, 3, 4, 4, 0, 8, 4, 4)})
    for step in (1, 2):
        BiasUpdate(0.001).after_step(info)
        expected = 0.001 * step * torch.tensor([-1.0, 1, 0, 0, 1, -1, 0, 0])
        torch.testing.assert_close(model[0].router.selection_bias, expected, rtol=1e-6, atol=0)


def test_every_router_with_a_bias_is_updated_by_its_own_layers_load_and_counted() -> None:
    model = build("smoe", "deepseek-v3", "deepseek-v3")
    low, high = load(0, *[2] * 7), load(9, *[1] * 7)
    info = StepInfo(model, loads={0: low, 1: low, 2: high})
    BiasUpdate(0.5).after_step(info)
    assert [model[i].router.selection_bias[0].item() for i in (1, 2)] == [0.5, -0.5]
    assert info.metrics == {"bias_update/routers": 2, "bias_update/max_bias": 0.5}


def test_before_the_first_step_nothing_moves_and_the_log_says_so() -> None:
    info = StepInfo(build("deepseek-v3"))
    BiasUpdate().after_step(info)
    assert info.metrics["bias_update/routers"] == 0 and not info.model[0].router.selection_bias.any()


def test_micro_batches_of_a_step_count_as_one_batch() -> None:
    """Two micro-batches, each collapsed on other experts: together they are balanced, so nothing moves."""
    model = build("deepseek-v3", top_k=N // 2).train()
    with torch.no_grad():
        model[0].router.gate.weight.zero_()
        model[0].router.gate.weight[: N // 2, 0] = 1.0
    statistics = StepStatistics()
    with options(statistics=statistics):
        for sign in (1.0, -1.0):
            x = torch.zeros(1, 10, D)
            x[..., 0] = sign
            model[0](x)
    info = StepInfo(model, loads=statistics.reduced())
    assert info.loads[0].count_N.tolist() == [10.0] * N
    BiasUpdate().after_step(info)
    assert not model[0].router.selection_bias.any()


def test_a_skewed_router_ends_up_balanced() -> None:
    model, x = build("deepseek-v3").train(), torch.randn(1, 512, D) + 0.5
    with torch.no_grad():
        model[0].router.gate.weight.normal_().mul_(0.3)
    violations = []
    for _ in range(200):
        statistics = StepStatistics()
        with torch.no_grad(), options(statistics=statistics):
            model[0](x)
        info = StepInfo(model, loads=statistics.reduced())
        count_N = info.loads[0].count_N
        violations.append((count_N.max() / count_N.mean() - 1).item())
        BiasUpdate(0.005).after_step(info)
    assert violations[0] > 1.0 and max(violations[-20:]) < 0.15


def test_a_rate_that_does_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate must be greater than 0"):
        BiasUpdate(0.0)
