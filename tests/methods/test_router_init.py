"""`router_init_scale`: how large a router's weights are when training begins."""

from __future__ import annotations

import math

import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.layers.moe import MoELayer
from libmoe.methods import create

SITE = Site(dim=16, hidden=32, seed=0)


def layer(method: str, scale: float) -> MoELayer:
    built = create(method, {"num_experts": 4, "router_init_scale": scale}).build_layer(SITE)
    assert isinstance(built, MoELayer)
    return built


@pytest.mark.parametrize("method", ["smoe", "sigmoid", "deepseek-moe", "xmoe"])
def test_the_factor_scales_the_matrices_and_nothing_else(method: str) -> None:
    usual, large = layer(method, 1.0), layer(method, 8.0)
    scaled = [name for name, p in usual.named_parameters() if name.startswith("router.") and p.dim() > 1]
    assert scaled
    for name, before in usual.named_parameters():
        after = large.get_parameter(name)
        torch.testing.assert_close(after, before * 8.0 if name in scaled else before, rtol=0, atol=0)


def test_zero_begins_undecided_and_a_large_factor_certain() -> None:
    x = torch.randn(64, 16)

    def margin(scale: float) -> float:
        gate = layer("smoe", scale).router.get_parameter("gate.weight")
        scores = (x @ gate.T).softmax(-1).sort(-1, descending=True).values
        return float((scores[:, 0] - scores[:, 1]).mean())

    assert margin(0.0) == 0.0
    assert margin(1.0) < 0.1 < 0.5 < margin(200.0)


@pytest.mark.parametrize("method", ["hash", "random", "hyper-router"])
def test_a_router_without_matrices_of_its_own_refuses_it(method: str) -> None:
    with pytest.raises(ConfigError, match=r"router_init_scale=2: \w+ trains no matrices in its router"):
        layer(method, 2.0)
    layer(method, 1.0)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_factor_is_a_finite_number_that_is_not_negative(value: float) -> None:
    with pytest.raises(ConfigError, match=f"router_init_scale must be 0 or a positive number, got {value}"):
        create("smoe", {"router_init_scale": value})
