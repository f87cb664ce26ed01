"""Switch Transformers (arXiv 2101.03961): top-1 routing, capacity, balance loss and the stabilising choices."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from libmoe.routers.gates import LinearGate
from libmoe.routers.noise import InputJitter

N, D, H = 4, 16, 24


def build(training: bool = False, **options: object) -> MoELayer:
    layer = libmoe.create("switch", num_experts=N, **options).build_layer(Site(D, H))
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: torch.Tensor) -> Routing:
    return layer.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training))


def balance(layer: MoELayer, logits_TN: torch.Tensor) -> torch.Tensor:
    """Loss without coefficient when the gate gives these logits."""
    layer.router.gate = torch.nn.Identity()
    ctx = ForwardContext().layer(0, (1, len(logits_TN)), layer.training)
    numerator, denominator = layer.losses[0].compute(layer.router.route(logits_TN, ctx), ctx)
    return numerator / denominator


def test_balanced_routing_gives_loss_1_and_collapse_gives_N() -> None:
    layer = build()
    assert isinstance(layer.losses[0], BalanceLoss) and layer.losses[0].coefficient == 0.01
    sharp = 1e3 * torch.eye(N, dtype=torch.double).repeat(3, 1)
    assert balance(layer, sharp).item() == pytest.approx(1.0, abs=1e-12)
    assert balance(layer, sharp[:1].repeat(12, 1)).item() == pytest.approx(N, abs=1e-12)


def test_loss_gradient_flows_through_P_only() -> None:
    layer = build()
    z_TN = torch.randn(10, N, dtype=torch.double, requires_grad=True)
    balance(layer, z_TN).backward()
    p_TN = z_TN.detach().softmax(-1)
    f_N = torch.bincount(p_TN.argmax(-1), minlength=N).double() / 10
    closed_form = N / 10 * p_TN * (f_N - p_TN @ f_N.unsqueeze(1))
    torch.testing.assert_close(z_TN.grad, closed_form, rtol=1e-12, atol=1e-14)


def test_capacity_keeps_the_first_tokens_and_drops_give_exactly_zero() -> None:
    layer = build(training=True, jitter=0.0, capacity_factor=1.0)
    x_TD = torch.randn(20, D, dtype=torch.double)
    routing = route(layer, x_TD)
    y_TD = layer.execute(x_TD, routing)
    slots, taken = 5, [0] * N
    for t, expert in enumerate(routing.plan.expert_A.tolist()):
        taken[expert] += 1
        if taken[expert] > slots:
            assert torch.all(y_TD[t] == 0)
        else:
            assert torch.any(y_TD[t] != 0)
    assert max(taken) > slots  # something was dropped, or this proves nothing


def test_loss_counts_choices_before_dropping() -> None:
    x_TD = torch.randn(20, D, dtype=torch.double)
    tight, roomy = (build(training=True, jitter=0.0, capacity_factor=c) for c in (0.25, None))
    roomy.load_state_dict(tight.state_dict())
    values = []
    for layer in (tight, roomy):
        ctx = ForwardContext().layer(0, (1, 20), True)
        values.append(layer.losses[0].compute(layer.router.route(x_TD, ctx), ctx)[0])
    assert torch.equal(values[0], values[1])


def test_identity_overflow_passes_the_gated_input() -> None:
    layer = build(training=True, jitter=0.0, capacity_factor=0.25, overflow="identity")
    x_TD = torch.randn(20, D, dtype=torch.double)
    routing = route(layer, x_TD)
    y_TD, lost_T = layer.execute(x_TD, routing), ~routing.plan.kept_A
    assert lost_T.any()
    expected = routing.plan.weight_A[lost_T].unsqueeze(1) * x_TD[lost_T]
    torch.testing.assert_close(y_TD[lost_T], expected, rtol=1e-12, atol=1e-14)


def test_eval_is_deterministic_and_drops_nothing_by_default() -> None:
    layer = build(capacity_factor=0.25)
    x = torch.randn(2, 10, D, dtype=torch.double)
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-12, atol=1e-14)
    dropping = build(eval_capacity_factor=0.25)
    assert not route(dropping, x[0]).plan.kept_A.all()


def test_jitter_is_unbiased_and_within_one_percent() -> None:
    x_TD = 1 + torch.rand(200_000, 1, dtype=torch.double)
    jittered = InputJitter(0.01).inputs(x_TD, ForwardContext().layer(0, (1, len(x_TD)), True))
    ratio = jittered / x_TD - 1
    assert ratio.abs().max() <= 0.01
    assert ratio.mean().abs() < 5 * 0.01 / (3 * len(x_TD)) ** 0.5  # five standard errors of U[-0.01, 0.01]
    assert isinstance(build().router.noise, InputJitter)


def test_jitter_touches_the_router_alone() -> None:
    layer = build(training=True, jitter=0.5, capacity_factor=None)
    x_TD = torch.randn(20, D, dtype=torch.double)
    routing = route(layer, x_TD)
    for t in range(20):
        expert, weight = routing.plan.expert_A[t], routing.plan.weight_A[t]
        expected = weight * layer.experts.materialise(int(expert))(x_TD[t])
        torch.testing.assert_close(layer.execute(x_TD, routing)[t], expected, rtol=1e-12, atol=1e-14)


def test_fp32_router_on_bf16_activations_flips_no_choices_and_a_bf16_router_does() -> None:
    exact, low = LinearGate(64, 32), LinearGate(64, 32, precision="input")
    low.load_state_dict(exact.state_dict())
    x_TD = torch.randn(4000, 64).bfloat16()
    reference = (x_TD.float() @ exact.weight.t()).argmax(-1)
    assert (exact(x_TD).argmax(-1) == reference).float().mean() >= 0.999
    assert (low(x_TD).argmax(-1) == reference).float().mean() < 0.995
    assert build(router_precision="input").router.gate.precision == "input"


def test_one_expert_is_the_expert() -> None:
    layer = libmoe.create("switch", num_experts=1).build_layer(Site(D, H)).double().train()
    x = torch.randn(2, 10, D, dtype=torch.double)
    torch.testing.assert_close(layer(x), layer.experts.materialise(0)(x), rtol=1e-12, atol=1e-14)


def test_gate_is_not_renormalised_so_the_router_learns_from_the_task() -> None:
    layer = build()
    routing = route(layer, torch.randn(10, D, dtype=torch.double))
    assert torch.equal(routing.plan.weight_A, routing.scores_TN.max(-1).values)
    layer(torch.randn(2, 5, D, dtype=torch.double)).sum().backward()
    assert layer.router.gate.weight.grad.abs().max() > 0


def test_switch_init_is_a_truncated_normal_of_scale_over_fan_in() -> None:
    layer = libmoe.create("switch", num_experts=8, init_scale=0.1).build_layer(Site(256, 128))
    for weight, fan_in in (
        (layer.router.gate.weight, 256),
        (layer.experts.w_in, 256),
        (layer.experts.w_out, 128),
    ):
        std = (0.1 / fan_in) ** 0.5
        assert weight.abs().max() <= 2 * std * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(
            0.8796 * std, rel=0.05
        )  # of a normal cut at two deviations


def test_expert_dropout_acts_inside_experts_while_training() -> None:
    x = torch.randn(2, 10, D, dtype=torch.double)
    layer = build(training=True, jitter=0.0, capacity_factor=None, expert_dropout=0.4)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_more_than_one_expert_per_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_k=2: switch"):
        libmoe.create("switch", top_k=2)


@pytest.mark.parametrize("slots", [3, 100])
def test_equals_the_switch_layer_of_transformers(slots: int) -> None:
    """One sequence, because transformers gives each sequence a capacity of its own."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    config = SwitchTransformersConfig(
        d_model=D,
        hidden_size=D,
        d_ff=H,
        num_experts=N,
        expert_capacity=slots,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )
    oracle = SwitchTransformersSparseMLP(config).eval()
    layer = libmoe.create("switch", num_experts=N, eval_capacity_factor=slots * N / 20).build_layer(
        Site(D, H, activation="relu", gated=False)
    )
    with torch.no_grad():
        layer.router.gate.weight.copy_(torch.randn(N, D))
        oracle.router.classifier.weight.copy_(layer.router.gate.weight)
        for e in range(N):
            oracle.experts[f"expert_{e}"].wi.weight.copy_(layer.experts.w_in[e])
            oracle.experts[f"expert_{e}"].wo.weight.copy_(layer.experts.w_out[e])
    x, x_oracle = (torch.linspace(-3, 3, 20 * D).sin().view(1, 20, D).requires_grad_() for _ in range(2))
    with use(ForwardContext()):
        y, y_oracle = layer.eval()(x), oracle(x_oracle)
    torch.testing.assert_close(y, y_oracle, rtol=1e-5, atol=1e-7)
    assert (y == 0).all(-1).any() == (slots == 3)
    y.square().sum().backward(), y_oracle.square().sum().backward()
    torch.testing.assert_close(x.grad, x_oracle.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        layer.router.gate.weight.grad, oracle.router.classifier.weight.grad, rtol=1e-4, atol=1e-6
    )
