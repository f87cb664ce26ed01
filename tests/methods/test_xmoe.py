"""The cosine router of X-MoE (arXiv 2204.09179) as LIBMoE (arXiv 2411.00918) runs it."""

from __future__ import annotations

import torch

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.methods import METHODS

N, D = 8, 16


def build(**options: object) -> MoELayer:
    return libmoe.create("xmoe", num_experts=N, **options).build_layer(Site(D, 24)).double().eval()


def route(layer: MoELayer, x_TD: torch.Tensor) -> Routing:
    return layer.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training))


def test_logits_do_not_change_with_the_scale_of_x() -> None:
    layer, x_TD = build(), torch.randn(30, D, dtype=torch.double)
    for scale in (1e-3, 7.0):
        scaled = route(layer, scale * x_TD).logits_TN
        torch.testing.assert_close(scaled, route(layer, x_TD).logits_TN, rtol=1e-10, atol=1e-12)


def test_embeddings_have_norm_1_5_at_every_forward_and_bound_the_logits() -> None:
    layer = build().train()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(2, 15, D, dtype=torch.double)
        layer(x).square().sum().backward()
        optimizer.step()
        norms_N = layer.router.gate.embeddings().norm(dim=-1)
        torch.testing.assert_close(norms_N, torch.full_like(norms_N, 1.5), rtol=1e-12, atol=0)
        assert route(layer, x.view(-1, D)).logits_TN.abs().max() <= 1.5 + 1e-12


def test_forward_writes_nothing() -> None:
    layer = build().train()
    with torch.no_grad():
        layer.router.gate.embedding.mul_(3.0)
    before = layer.router.gate.embedding.clone()
    layer(torch.randn(2, 15, D, dtype=torch.double))
    assert torch.equal(layer.router.gate.embedding, before)


def test_values_are_those_of_rescaling_the_embeddings_in_place() -> None:
    layer, x_TD = build(), torch.randn(30, D, dtype=torch.double)
    gate = layer.router.gate
    with torch.no_grad():
        gate.embedding.mul_(torch.rand(N, 1, dtype=torch.double) + 0.5)
        rescaled = gate.embedding * (1.5 / gate.embedding.norm(dim=-1, keepdim=True))
    u_TP = x_TD @ gate.projection.t()
    expected = (u_TP / u_TP.norm(dim=-1, keepdim=True)) @ rescaled.t()
    torch.testing.assert_close(route(layer, x_TD).logits_TN, expected, rtol=1e-12, atol=1e-14)


def test_chosen_probabilities_pass_a_second_softmax() -> None:
    layer, x_TD = build(top_k=2), torch.randn(30, D, dtype=torch.double)
    routing = route(layer, x_TD)
    p_TN = (routing.logits_TN / 0.3).softmax(-1)
    weight_TK = routing.plan.weight_A.view(-1, 2)
    torch.testing.assert_close(weight_TK, p_TN.topk(2).values.softmax(-1), rtol=1e-12, atol=0)
    assert torch.equal(routing.scores_TN, p_TN)
    assert weight_TK.max() < 0.7311  # sigmoid(1): gates are nearly equal by construction


def test_projection_has_N_over_2_dimensions_unless_told() -> None:
    assert build().router.gate.projection.shape == (N // 2, D)
    assert build(projection=5).router.gate.embedding.shape == (N, 5)
    assert METHODS.info("cosine").name == "xmoe"
