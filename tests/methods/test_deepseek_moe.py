"""DeepSeekMoE (arXiv 2401.06066): fine-grained experts, shared experts, balance at two levels."""

from __future__ import annotations

import math

import pytest
import torch

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, DeviceBalanceLoss
from libmoe.losses.base import Loss

D, H = 16, 32  # width of the model and of one whole expert


def build(m: int, shared: int, n: int = 4, k: int = 2, **options: object) -> MoELayer:
    method = libmoe.create(
        "deepseek-moe",
        num_experts=n,
        top_k=k,
        segments=m,
        shared_experts=shared,
        expert_hidden=H // m,
        **options,
    )
    return method.build_layer(Site(D, 64)).double()


def params(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def flops(layer: MoELayer) -> float:
    routed = sum(
        load * cost for load, cost in zip(layer.router.expected_load(), layer.experts.flops_per_row())
    )
    return routed + 2 * params(layer.shared)


def loss(loss: Loss, scores_TN: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
    weight_TK = scores_TN.gather(1, expert_TK)
    plan = SparsePlan.from_topk(expert_TK, weight_TK, scores_TN.shape[1])
    ctx = ForwardContext().layer(0, (2, len(scores_TN) // 2), True)
    numerator, denominator = loss.compute(Routing(plan, None, scores_TN), ctx)
    return numerator / denominator


@pytest.mark.parametrize(("m", "shared"), [(2, 0), (4, 1), (4, 3)])
def test_cost_is_that_of_whole_experts(m: int, shared: int) -> None:
    whole, fine = build(1, 0), build(m, shared)
    assert params(fine.experts) + params(fine.shared) == params(whole.experts)
    assert flops(fine) == pytest.approx(flops(whole), rel=1e-12)


def test_finer_experts_combine_in_far_more_ways() -> None:
    coarse, fine = (build(m, 0, n=16).router for m in (1, 4))
    assert (math.comb(coarse.num_experts, coarse.top_k), math.comb(fine.num_experts, fine.top_k)) == (
        120,
        4_426_165_368,
    )


def test_active_parameters_equal_the_dense_ffn_by_default() -> None:
    layer = libmoe.create("deepseek-moe").build_layer(Site(D, 64))
    assert flops(layer) == pytest.approx(2 * 3 * D * 64)  # three matrices of a gated FFN of width 64


def test_all_slices_of_the_chosen_experts_reproduce_the_parent() -> None:
    parent, fine = build(1, 0), build(4, 0)
    with torch.no_grad():
        gate, up = parent.experts.w_in.chunk(2, dim=1)
        slices = [w.unflatten(1, (4, -1)).flatten(0, 1) for w in (gate, up)]
        fine.experts.w_in.copy_(torch.cat(slices, dim=1))
        fine.experts.w_out.copy_(parent.experts.w_out.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1))
    x_TD = torch.randn(9, D, dtype=torch.double)
    plan = parent.route(x_TD, ForwardContext().layer(0, (1, 9), False)).plan
    expert_TK, weight_TK = plan.expert_A.view(9, 2), plan.weight_A.view(9, 2)
    all_slices = (4 * expert_TK.unsqueeze(-1) + torch.arange(4)).flatten(1)
    sliced = SparsePlan.from_topk(all_slices, weight_TK.repeat_interleave(4, dim=1), 16)
    torch.testing.assert_close(
        fine.experts.execute(x_TD, sliced), parent.experts.execute(x_TD, plan), rtol=0, atol=1e-12
    )


def test_gates_sum_to_less_than_1_over_routed_experts_only() -> None:
    layer, x_TD = build(4, 1), torch.randn(9, D, dtype=torch.double)
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 9), False))
    assert routing.scores_TN.shape == (9, 15) and routing.plan.k == 7
    assert (routing.plan.weight_A.view(9, 7).sum(1) < 1).all()


def test_without_routed_experts_exactly_the_shared_ffn_is_left() -> None:
    layer, x = build(4, 2).eval(), torch.randn(2, 9, D, dtype=torch.double)
    with torch.no_grad():
        layer.experts.w_out.zero_()
        assert torch.equal(layer(x), layer.shared.ffn(x.view(-1, D)).view_as(x))
        before = layer(x)
        layer.router.gate.weight.add_(torch.randn_like(layer.router.gate.weight))
        assert torch.equal(layer(x), before)


def test_losses_are_1_at_perfect_balance() -> None:
    uniform = torch.full((16, 8), 1 / 8, dtype=torch.double)
    turns = torch.stack([torch.arange(16) % 8, (torch.arange(16) + 1) % 8], dim=1)
    assert loss(BalanceLoss(1.0), uniform, turns).item() == pytest.approx(1, abs=1e-12)
    for devices in (2, 3, 8):
        assert loss(DeviceBalanceLoss(1.0, devices), uniform, turns).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_device_loss_over_single_experts_is_the_expert_loss(scope: str) -> None:
    scores_TN = torch.randn(16, 8, dtype=torch.double).softmax(-1)
    expert_TK = scores_TN.topk(3).indices
    device, expert = DeviceBalanceLoss(1.0, 8, scope), BalanceLoss(1.0, scope)
    torch.testing.assert_close(
        loss(device, scores_TN, expert_TK), loss(expert, scores_TN, expert_TK), rtol=1e-12, atol=0
    )


def test_device_loss_over_one_device_is_constant() -> None:
    z_TN = torch.randn(16, 8, dtype=torch.double, requires_grad=True)
    value = loss(DeviceBalanceLoss(1.0, 1), z_TN.softmax(-1), z_TN.topk(3).indices)
    value.backward()
    assert value.item() == pytest.approx(1, abs=1e-7)  # shares are counted in float32
    assert z_TN.grad.abs().max() < 1e-15


def test_device_loss_follows_the_papers_formula() -> None:
    scores_TN = torch.randn(10, 6, dtype=torch.double).softmax(-1)
    expert_TK = scores_TN.topk(2).indices
    f_N = 6 / (2 * 10) * torch.bincount(expert_TK.flatten(), minlength=6)
    p_N = scores_TN.mean(0)
    expected = sum(f_N[g].mean() * p_N[g].sum() for g in (slice(0, 3), slice(3, 6)))
    value = loss(DeviceBalanceLoss(1.0, 2, "micro_batch"), scores_TN, expert_TK)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_task_reaches_unselected_experts_through_the_normaliser_only() -> None:
    layer, x_TD = build(4, 0, balance=0.0).train(), torch.randn(1, D, dtype=torch.double)
    weight_ND, plans = layer.router.gate.weight, []

    def unselected_gradient(detach_normaliser: bool) -> torch.Tensor:
        def score(logits_TN: torch.Tensor) -> torch.Tensor:
            normaliser = logits_TN.logsumexp(-1, keepdim=True)
            return (logits_TN - (normaliser.detach() if detach_normaliser else normaliser)).exp()

        layer.router.score = score
        routing = layer.route(x_TD, ForwardContext().layer(0, (1, 1), True))
        plans.append(routing.plan.expert_A)
        (gradient,) = torch.autograd.grad(layer.execute(x_TD, routing).sum(), weight_ND)
        rows = torch.ones(len(weight_ND), dtype=torch.bool).index_fill(0, routing.plan.expert_A, False)
        assert gradient[~rows].abs().max() > 0
        return gradient[rows]

    assert torch.all(unselected_gradient(detach_normaliser=True) == 0)
    assert unselected_gradient(detach_normaliser=False).abs().max() > 0


def test_shared_experts_learn_from_every_token() -> None:
    layer, x = build(4, 1).train(), torch.randn(1, 9, D, dtype=torch.double)
    y = layer(x)
    for t in range(9):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), layer.shared.ffn.w_out, retain_graph=True)
        assert gradient.abs().max() > 0


def test_impossible_divisions_are_refused() -> None:
    for options, match in (
        ({"segments": 1, "shared_experts": 2}, "shared_experts=2"),
        ({"segments": 0}, "segments=0"),
        ({"devices": 99}, "devices=99"),
    ):
        with pytest.raises(ConfigError, match=match):
            libmoe.create("deepseek-moe", options)
