"""Defining properties of MoE++ (arXiv 2410.07348)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers.moe import MoELayer
from libmoe.methods import create
from libmoe.routers.capacity import capacity
from libmoe.routers.pathway import heterogeneous_capacity

DIM, FFN, CONST, COPY, ZERO = 8, 4, 4, 6, 7  # four FFNs are 0..3, then two constants, copy, zero


class FixedLogits(nn.Module):
    """The same logits for every token, highest for the experts in ``chosen``."""

    def __init__(self, chosen: list[int], num_experts: int) -> None:
        super().__init__()
        self.logits_N = torch.zeros(num_experts, dtype=torch.float64)
        for place, expert in enumerate(chosen):
            self.logits_N[expert] = 5.0 - place

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.logits_N.expand(len(x_TD), -1)


def make_layer(chosen: list[int] | None = None, index: int = 0, **options: object) -> MoELayer:
    layer = (
        create("moe-plus-plus", num_experts=FFN, **options).build_layer(Site(DIM, 16, index=index)).double()
    )
    if chosen is not None:
        layer.router.gate = FixedLogits(chosen, layer.router.num_experts)
    return layer


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, DIM, dtype=torch.float64)


def test_zero_beside_an_ffn_gives_exactly_the_ffn(x: Tensor) -> None:
    layer = make_layer([ZERO, 2])
    torch.testing.assert_close(layer(x), layer.experts.materialise(2)(x), rtol=0, atol=1e-12)


def test_zero_beside_copy_gives_the_input(x: Tensor) -> None:
    torch.testing.assert_close(make_layer([COPY, ZERO])(x), x, rtol=0, atol=0)


def test_constant_expert_with_zero_mix_averages_input_and_constant(x: Tensor) -> None:
    layer = make_layer([CONST, ZERO])
    constant = layer.experts.parts[1]
    with torch.no_grad():
        constant.mix.zero_()
    torch.testing.assert_close(layer(x), (x + constant.constant[0]) / 2, rtol=0, atol=1e-12)


def test_token_that_chooses_only_zero_experts_outputs_zero(x: Tensor) -> None:
    y = make_layer([7, 8], zero_experts=2)(x)
    assert torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize(("gates", "weight"), [("paper", None), ("mixtral", 1 / (1 + math.e))])
def test_other_gates_let_zero_shrink_the_ffn(gates: str, weight: float | None, x: Tensor) -> None:
    layer = make_layer([ZERO, 2], gates=gates)
    if weight is None:
        weight = layer.router.gate.logits_N.softmax(0)[2].item()
    torch.testing.assert_close(layer(x), weight * layer.experts.materialise(2)(x))


def test_without_residual_weights_routing_is_plain_top_k(x: Tensor) -> None:
    forward = ForwardContext()
    first, second = make_layer(), make_layer(index=1)
    with torch.no_grad():
        second.router.residual.zero_()
    x_TD = x.flatten(0, 1)
    first.route(x_TD, forward.layer(0, (2, 5), True))
    routing = second.route(x_TD, forward.layer(1, (2, 5), True))
    expected = (x_TD @ second.router.gate.weight.t()).softmax(-1).topk(2)
    assert torch.equal(routing.plan.expert_A.view(-1, 2), expected.indices)


def test_logits_travel_between_layers_with_their_gradient(x: Tensor) -> None:
    first, second, third = (make_layer(index=i) for i in range(3))
    assert first.router.residual is None  # d loss / d W_g is zero for the first layer: there is none

    def logits_of_last() -> Tensor:
        forward = ForwardContext()
        with context.use(forward):
            for layer in (first, second, third):
                layer(x)  # every layer gets the same input, held fixed
        return forward.routings[2].logits_TN

    before = logits_of_last()
    before.square().sum().backward()
    assert first.router.gate.weight.grad.abs().max() > 0  # through two residuals
    assert second.router.residual.grad.abs().max() > 0
    with torch.no_grad():
        first.router.gate.weight.add_(1.0)
    assert not torch.allclose(logits_of_last(), before)


def test_first_layer_of_a_pass_keeps_its_residual_in_the_graph(x: Tensor) -> None:
    layer = make_layer(index=1)  # nothing before it in this pass
    layer(x).sum().backward()
    assert torch.equal(layer.router.residual.grad, torch.zeros_like(layer.router.residual))


def test_layer_with_another_number_of_experts_passes_nothing_on(x: Tensor) -> None:
    other, layer = make_layer(copy_experts=3), make_layer(index=1)
    with context.use(ForwardContext()):
        other(x)
        after = layer(x)
    torch.testing.assert_close(after, layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("tau", [0.1, 0.75, 1.0])
def test_capacities_sum_to_gamma_and_stand_as_tau(tau: float) -> None:
    slots = heterogeneous_capacity(1000, [tau] * 8 + [1.0] * 4, 1.1)
    assert sum(slots) == pytest.approx(1.1 * 1000)
    assert slots[0] / slots[-1] == pytest.approx(tau)


def test_capacity_without_free_experts_is_the_usual_one() -> None:
    slots = heterogeneous_capacity(1000, [1.0] * 12, 1.1)
    assert [math.ceil(c) for c in slots] == [capacity(1000, 12, 1.1)] * 12


def test_dropped_tokens_get_exactly_zero_and_none_are_dropped_in_evaluation(x: Tensor) -> None:
    layer = make_layer([0, 1], capacity_factor=1.1)  # all ten tokens want the same two experts
    slots = math.ceil(1.1 * 20 * 0.75 / (0.75 * 4 + 4))
    y = layer.train()(x).flatten(0, 1)
    assert torch.equal(y[slots:], torch.zeros_like(y[slots:]))
    assert (y[:slots].abs().sum(1) > 0).all()
    assert (layer.eval()(x).abs().sum(-1) > 0).all()


def paper_loss(layer: MoELayer, x: Tensor, tau: float, k: int) -> Tensor:
    """``sum_i eta_i f_i P_i`` written out."""
    x_TD = x.flatten(0, 1)
    p_TN = layer.router.gate(x_TD).softmax(-1)
    f_N = torch.zeros(p_TN.shape[1], dtype=p_TN.dtype)
    for row in p_TN.topk(k).indices:
        f_N[row] += 1 / len(x_TD)
    eta_N = torch.tensor([1.0] * FFN + [tau] * (p_TN.shape[1] - FFN), dtype=p_TN.dtype)
    return (eta_N * f_N * p_TN.mean(0)).sum()


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_default_balance_loss_is_the_papers_with_its_beta(tau: float, x: Tensor) -> None:
    layer = make_layer(tau=tau, balance_scope="micro_batch").train()
    ctx = ForwardContext().layer(0, (2, 5), True)
    numerator, denominator = layer.losses[0].compute(layer.route(x.flatten(0, 1), ctx), ctx)
    ours = layer.losses[0].coefficient * numerator / denominator
    torch.testing.assert_close(ours, 0.01 * paper_loss(layer, x, tau, k=2))


def test_uniform_routing_costs_k_over_n(x: Tensor) -> None:
    layer = make_layer([], tau=1.0, balance=1.0, balance_scope="micro_batch").train()
    ctx = ForwardContext().layer(0, (2, 5), True)
    numerator, denominator = layer.losses[0].compute(layer.route(x.flatten(0, 1), ctx), ctx)
    assert (layer.losses[0].coefficient * numerator / denominator).item() == pytest.approx(2 / 8)


@pytest.mark.parametrize("tau", [0.25, 0.75])
def test_ffns_per_token_follow_tau_when_the_balance_loss_is_minimised(tau: float) -> None:
    """Only the router learns, on the balance loss alone; rows of the FFN experts are counted."""
    method = create("moe-plus-plus", tau=tau, balance_scope="micro_batch")
    layer = method.build_layer(Site(16, 4)).train()
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.01)
    measured = []
    for step in range(300):
        x_TD = torch.randn(512, 16)
        ctx = ForwardContext().layer(0, (1, 512), True)
        routing = layer.route(x_TD, ctx)
        numerator, denominator = layer.losses[0].compute(routing, ctx)
        optimizer.zero_grad()
        (numerator / denominator).backward()
        optimizer.step()
        if step >= 200:
            measured.append(routing.plan.load_N()[:8].sum().item() / 512)
    expected = 2 * tau * 8 / (tau * 8 + 4)
    assert sum(measured) / len(measured) == pytest.approx(expected, rel=0.1)
    assert sum(layer.router.expected_load()[:8]) == pytest.approx(expected)


def test_expected_ffn_work_is_the_published_fraction() -> None:
    for ffn, const, tau, fraction in [(8, 2, 0.75, 0.60), (16, 2, 0.75, 0.75), (32, 6, 0.75, 0.75)]:
        method = create("moe-plus-plus", num_experts=ffn, const_experts=const, tau=tau)
        load = method.build_layer(Site(8, 16)).router.expected_load()
        assert sum(load) == pytest.approx(2)
        assert sum(load[:ffn]) / 2 == pytest.approx(fraction)


def test_cached_decoding_carries_the_logits_of_each_new_token() -> None:
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    method = create("moe-plus-plus", num_experts=4)
    for i, block in enumerate(model.model.layers):
        block.mlp = method.build_layer(Site(16, 32, index=i, count=3, init_std=0.5)).eval()
        if block.mlp.router.residual is not None:
            nn.init.normal_(block.mlp.router.residual)
    context.install(model)
    ids = torch.randint(0, 31, (2, 9))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cached = model(input_ids=ids[:, :6], use_cache=True)
        pieces = [cached.logits]
        for t in range(6, 9):
            cached = model(input_ids=ids[:, t : t + 1], past_key_values=cached.past_key_values)
            pieces.append(cached.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


def test_two_layer_gate_has_the_released_shape(x: Tensor) -> None:
    layer = make_layer(gate="two-layer")
    assert layer.router.gate.w_in.shape == (8 * 8, DIM)
    expected = torch.tanh(x.flatten(0, 1) @ layer.router.gate.w_in.t()) @ layer.router.gate.w_out.t()
    torch.testing.assert_close(layer.router.gate(x.flatten(0, 1)), expected)


def test_statistics_count_free_experts_apart_from_ffns(x: Tensor) -> None:
    statistics = StepStatistics()
    with context.options(statistics=statistics):
        make_layer([1, COPY])(x)
    assert statistics.seen[0].count_N.tolist() == [0, 10, 0, 0, 0, 0, 10, 0]


def test_impossible_options_are_named() -> None:
    with pytest.raises(ConfigError, match="tau must be greater than 0, got 0"):
        create("moe++", tau=0.0)
    with pytest.raises(ConfigError, match="copy_experts must not be negative"):
        create("moe++", copy_experts=-1)
