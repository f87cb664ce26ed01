"""Random routing, the control without a gate."""

from __future__ import annotations

import torch

import libmoe
from libmoe.core.context import ForwardContext, options
from libmoe.core.interventions import BanExperts
from libmoe.core.site import Site
from libmoe.layers import MoELayer

N, D = 8, 16


def build(top_k: int = 2, training: bool = False) -> MoELayer:
    return libmoe.create("random", num_experts=N, top_k=top_k).build_layer(Site(D, 24)).train(training)


def choose(
    layer: MoELayer, batch: int, length: int, index: int = 0, forward: ForwardContext | None = None
) -> torch.Tensor:
    ctx = (forward or ForwardContext()).layer(index, (batch, length), layer.training)
    plan = layer.router.route(torch.randn(batch * length, D), ctx).plan
    assert torch.all(plan.weight_A == 1 / plan.k)
    return plan.expert_A.view(batch, length, -1)


def test_experts_of_a_token_differ_and_all_are_equally_likely() -> None:
    for training in (True, False):
        chosen = choose(build(training=training), 1, 20_000)
        assert (chosen[..., 0] != chosen[..., 1]).all()
        shares = torch.bincount(chosen.flatten(), minlength=N) / chosen.numel()
        assert (shares - 1 / N).abs().max() < 0.01
        pairs = torch.bincount((chosen[..., 0] * N + chosen[..., 1]).flatten(), minlength=N * N) / 20_000
        assert (pairs.view(N, N).fill_diagonal_(1 / 56) - 1 / 56).abs().max() < 0.005


def test_training_draws_anew_in_each_forward_and_the_seed_fixes_it() -> None:
    layer, draws = build(training=True), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(choose(layer, 2, 50))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_evaluation_is_fixed_by_position_and_layer() -> None:
    layer = build()
    chosen = choose(layer, 2, 50)
    assert torch.equal(chosen, choose(layer, 2, 50)) and torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen, choose(layer, 2, 50, index=1))
    decoding = ForwardContext({"input_ids": torch.zeros(1, 1).long(), "position_ids": torch.tensor([[17]])})
    assert torch.equal(choose(layer, 1, 1, forward=decoding)[0, 0], chosen[0, 17])


def test_it_has_no_gate_and_interventions_apply() -> None:
    layer = build()
    assert not list(layer.router.parameters())
    with options(interventions=[BanExperts([0, 3])]):
        assert not torch.isin(choose(layer, 1, 500), torch.tensor([0, 3])).any()
