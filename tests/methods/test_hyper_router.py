"""HyperRouter (arXiv 2312.07035): a frozen hypernetwork makes the gate out of a trained embedding."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.site import Site
from libmoe.layers import MoELayer

N, D = 8, 32


def build(**options: object) -> MoELayer:
    return libmoe.create("hyper-router", num_experts=N, **options).build_layer(Site(D, 24))


def test_router_gradients_flow_to_the_embedding_only_and_H_does_not_move() -> None:
    layer = build().train()
    assert [name for name, _ in layer.router.named_parameters()] == ["gate.embedding"]
    frozen = {name: buffer.clone() for name, buffer in layer.router.named_buffers()}
    embedding, weight = layer.router.gate.embedding.clone(), layer.router.gate.weight().detach()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    layer(torch.randn(2, 15, D)).square().sum().backward()
    optimizer.step()
    assert set(frozen) == {"gate.first", "gate.second"}
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in layer.router.named_buffers())
    assert not torch.equal(layer.router.gate.embedding, embedding)
    assert not torch.equal(layer.router.gate.weight(), weight)


def test_H_is_saved_with_the_model() -> None:
    assert {"router.gate.first", "router.gate.second"} <= set(build().state_dict())


def test_logits_come_from_the_generated_weights() -> None:
    layer, x_TD = build(hyper_hidden=5).double(), torch.randn(9, D, dtype=torch.double)
    gate = layer.router.gate
    weight_ND = (gate.second @ (gate.first @ gate.embedding).relu()).view(N, D)
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 9), False))
    torch.testing.assert_close(routing.logits_TN, x_TD @ weight_ND.t(), rtol=1e-12, atol=1e-14)


def test_generated_weights_start_as_large_as_an_ordinary_gate() -> None:
    torch.manual_seed(0)
    layer = libmoe.create("hyper-router", num_experts=N).build_layer(Site(512, 24))
    assert layer.router.gate.weight().std().item() == pytest.approx(0.02, rel=0.25)
