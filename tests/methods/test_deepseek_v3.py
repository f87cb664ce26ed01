"""The MoE of DeepSeek-V3 (arXiv 2412.19437), against transformers' module and its own definitions."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.controllers import BiasUpdate
from libmoe.core.context import ForwardContext
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss

N, K, D, H = 16, 4, 24, 12


def build(**options: object) -> MoELayer:
    return libmoe.create("deepseek-v3", num_experts=N, top_k=K, expert_hidden=H, **options).build_layer(
        Site(D, 64)
    )


def oracle(n_group: int, topk_group: int, shared: int = 2) -> torch.nn.Module:
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=D, moe_intermediate_size=H, n_routed_experts=N, num_experts_per_tok=K, n_shared_experts=shared,
        n_group=n_group, topk_group=topk_group, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = "eager"
    return DeepseekV3MoE(config)


def same_weights(layer: MoELayer, other: torch.nn.Module) -> None:
    """Random gate, experts and, for selection, a bias large enough to change it."""
    with torch.no_grad():
        layer.router.gate.weight.normal_()
        layer.router.selection_bias.copy_(0.3 * torch.randn(N))
        other.gate.weight.copy_(layer.router.gate.weight)
        other.gate.e_score_correction_bias.copy_(layer.router.selection_bias)
        other.experts.gate_up_proj.copy_(layer.experts.w_in)
        other.experts.down_proj.copy_(layer.experts.w_out)
        gate, up = layer.shared.ffn.w_in.chunk(2)
        other.shared_experts.gate_proj.weight.copy_(gate)
        other.shared_experts.up_proj.weight.copy_(up)
        other.shared_experts.down_proj.weight.copy_(layer.shared.ffn.w_out)


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (8, 3), (4, 4)])
def test_selection_and_weights_are_those_of_transformers(n_group: int, topk_group: int) -> None:
    layer, other = (
        build(n_group=n_group, topk_group=topk_group, shared_experts=2),
        oracle(n_group, topk_group),
    )
    same_weights(layer, other)
    x_TD = torch.randn(500, D)
    plan = layer.route(x_TD, ForwardContext().layer(0, (1, 500), False)).plan
    _, weight_TK, expert_TK = other.gate(x_TD)
    ours_TK, theirs_TK = (e.sort(dim=1) for e in (plan.expert_A.view(500, K), expert_TK))
    assert torch.equal(ours_TK.values, theirs_TK.values)
    weights = (
        w.gather(1, e.indices) for w, e in ((plan.weight_A.view(500, K), ours_TK), (weight_TK, theirs_TK))
    )
    # Their choices are unordered, so the sum of k scores may differ by a rounding each.
    torch.testing.assert_close(*weights, rtol=K * torch.finfo(torch.float32).eps, atol=0)
    unbiased_TK = layer.router.gate(x_TD).sigmoid().topk(K).indices
    assert (unbiased_TK.sort().values != theirs_TK.values).any(1).float().mean() > 0.2  # the bias matters


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2)])
def test_layer_equals_that_of_transformers_with_gradients(n_group: int, topk_group: int) -> None:
    layer = build(n_group=n_group, topk_group=topk_group, shared_experts=2, balance=0.0).train()
    other = oracle(n_group, topk_group)
    same_weights(layer, other)
    x, x_other = (torch.linspace(-3, 3, 40 * D).sin().view(2, 20, D).requires_grad_() for _ in range(2))
    y, y_other = layer(x), other(x_other)
    torch.testing.assert_close(y, y_other, rtol=1e-5, atol=1e-7)
    y.square().sum().backward(), y_other.square().sum().backward()
    for mine, theirs in (
        (x.grad, x_other.grad),
        (layer.router.gate.weight.grad, other.gate.weight.grad),
        (layer.experts.w_in.grad, other.experts.gate_up_proj.grad),
        (layer.shared.ffn.w_out.grad, other.shared_experts.down_proj.weight.grad),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)


def test_weights_come_from_unbiased_scores_and_sum_to_the_scaling_factor() -> None:
    layer, x_TD = build(routed_scaling_factor=1.7).double(), torch.randn(50, D, dtype=torch.double)
    layer.router.selection_bias.copy_(torch.randn(N))
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 50), False))
    scores_TK = routing.logits_TN.sigmoid().gather(1, routing.plan.expert_A.view(50, K))
    expected = 1.7 * scores_TK / scores_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.plan.weight_A.view(50, K), expected, rtol=1e-12, atol=0)


def test_a_token_uses_its_best_groups_only() -> None:
    layer, x_TD = build(n_group=4, topk_group=2), torch.randn(200, D)
    group_TK = layer.route(x_TD, ForwardContext().layer(0, (1, 200), False)).plan.expert_A.view(200, K) // 4
    assert max(len(row.unique()) for row in group_TK) == 2


def test_balance_is_sequence_wise_tiny_and_on_normalised_scores() -> None:
    layer, x_TD = build(), torch.randn(20, D)
    balance = layer.losses[0]
    assert isinstance(balance, BalanceLoss)
    assert (balance.coefficient, balance.scope) == (1e-4, "sequence")
    ctx = ForwardContext().layer(0, (2, 10), True)
    routing = layer.route(x_TD, ctx)
    scores_TN = routing.logits_TN.sigmoid()
    p_BN = (scores_TN / scores_TN.sum(-1, keepdim=True)).view(2, 10, N).mean(1)
    chosen_BN = torch.nn.functional.one_hot(routing.plan.expert_A.view(2, -1), N).sum(1)
    expected = (N / (K * 10) * chosen_BN * p_BN).sum(1).mean()  # eq. 17-20, averaged over sequences
    numerator, denominator = balance.compute(routing, ctx)
    assert (numerator / denominator).item() == pytest.approx(expected.item(), rel=1e-5)


def test_active_parameters_equal_the_dense_ffn_by_default() -> None:
    layer = libmoe.create("deepseek-v3", top_k=3, shared_experts=1).build_layer(Site(D, 64))
    assert (layer.experts.hidden, layer.shared.ffn.w_out.shape[1]) == (16, 16)


def test_the_bias_controller_comes_with_the_method_unless_off() -> None:
    (controller,) = libmoe.create("deepseek-v3").build_controllers()
    assert isinstance(controller, BiasUpdate) and controller.rate == 0.001
    assert not libmoe.create("deepseek-v3", bias_update_rate=0.0).build_controllers()


def test_the_bias_gets_no_gradient() -> None:
    layer = build()
    layer.train()(torch.randn(1, 9, D)).sum().backward()
    assert not layer.router.selection_bias.requires_grad
    assert "selection_bias" not in dict(layer.router.named_parameters())
