"""Top-K activation (arXiv 2310.10837 §3.1): what stays of a dense FFN's hidden units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import TopKFFN

D, H = 8, 32
SITE = Site(D, H, activation="relu", gated=False, seed=0, init_std=0.3)


def test_exactly_the_largest_units_stay_as_they_were() -> None:
    layer = libmoe.create("topk-ffn", active_units=5).build_layer(SITE)
    x = torch.randn(50, D)
    dense = F.relu(x @ layer.w_in.T)
    kept = layer.hidden_units(x)
    best = dense.topk(5, dim=-1).values
    assert torch.equal(kept.topk(5, dim=-1).values, best) and int((kept != 0).sum(-1).max()) <= 5
    assert torch.equal(kept[kept != 0], dense[kept != 0])
    assert torch.allclose(layer(x), kept @ layer.w_out.T)


def test_all_units_are_the_dense_network() -> None:
    layer = libmoe.create("topk-ffn", active_units=H).build_layer(SITE)
    dense = libmoe.create("dense", hidden=H).build_layer(SITE)
    x = torch.randn(2, 7, D)
    assert torch.equal(layer(x), dense(x))


def test_units_that_are_left_out_get_no_gradient() -> None:
    layer = libmoe.create("topk-ffn", active_units=3).build_layer(SITE)
    x = torch.randn(1, D)
    layer(x).sum().backward()
    kept = layer.hidden_units(x)[0] != 0
    assert torch.equal(layer.w_in.grad.abs().sum(1) > 0, kept)


def test_ranking_by_norm_takes_the_units_that_move_the_output_most() -> None:
    layer = TopKFFN(D, H, "relu", False, active=1, by_norm=True)
    with torch.no_grad():
        layer.w_in.copy_(torch.eye(H, D))
        layer.w_out.fill_(1.0)
        layer.w_out[:, 1] = 10.0
    x = torch.zeros(1, D)
    x[0, 0], x[0, 1] = 2.0, 1.0  # unit 0 is larger, unit 1 counts for more
    assert layer.hidden_units(x).nonzero()[:, 1].tolist() == [1]
    layer.by_norm = False
    assert layer.hidden_units(x).nonzero()[:, 1].tolist() == [0]


def test_options_of_experts_and_too_many_units_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_experts has no meaning"):
        libmoe.create("topk-ffn", num_experts=4)
    with pytest.raises(ConfigError, match="active=33"):
        libmoe.create("topk-ffn", active_units=33).build_layer(SITE)
