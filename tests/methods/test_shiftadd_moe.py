"""ShiftAddViT's MoE (arXiv 2306.06446): weights that are powers of two, and losses that know latencies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN, UnionExperts
from libmoe.experts.shift import ShiftExperts, ShiftFFN, ShiftLinear, to_fixed_point
from libmoe.layers import MoELayer
from libmoe.losses import ImportanceLoss, LoadLoss
from libmoe.models.upcycle import copy_into_experts
from libmoe.testing import check_experts, check_loss, check_method

D, H = 12, 20


def build(**given: Any) -> MoELayer:
    return libmoe.create("shiftadd-moe", given).build_layer(Site(D, H, seed=0, init_std=0.3)).double()


def context(tokens: int, training: bool = True) -> LayerContext:
    return ForwardContext().layer(0, (1, tokens), training)


# -- shifts -----------------------------------------------------------------------------------------------


def test_weights_are_zero_or_signed_powers_of_two_from_2_to_the_minus_14_to_1() -> None:
    linear = ShiftLinear(torch.randn(50, 40))
    with torch.no_grad():
        linear.shift.uniform_(-20, 5)
        linear.sign.uniform_(-3, 3)
    weight_OI = linear.weight().detach()
    powers = {0.0} | {s * 2.0**p for p in range(-14, 1) for s in (1, -1)}
    found = set(weight_OI.flatten().tolist())
    assert found == powers
    for o, i in ((0, 0), (3, 7), (20, 30)):
        sign = round(max(-1.0, min(1.0, linear.sign[o, i].item())))
        assert weight_OI[o, i] == sign * 2.0 ** round(max(-14.0, min(0.0, linear.shift[o, i].item())))


def test_gradients_of_shift_and_sign_are_those_of_the_weight_without_rounding() -> None:
    linear = ShiftLinear(torch.randn(4, 5), fixed_point=False).double()
    with torch.no_grad():
        linear.shift.copy_(torch.randint(-6, 0, (4, 5)))  # whole numbers, where rounding changes nothing
    x, g = torch.randn(9, 5, dtype=torch.double, requires_grad=True), torch.randn(9, 4, dtype=torch.double)
    linear(x).backward(g)
    weight_OI, outer_OI = linear.weight().detach(), g.T @ x.detach()
    torch.testing.assert_close(linear.shift.grad, outer_OI * weight_OI * math.log(2))
    torch.testing.assert_close(linear.sign.grad, outer_OI)
    torch.testing.assert_close(x.grad, g @ weight_OI)
    eps = 1e-6
    for o, i in ((0, 0), (3, 4), (2, 1)):

        def smooth(shift_by: float, o: int = o, i: int = i) -> Tensor:
            shift = linear.shift.detach().clone()
            shift[o, i] += shift_by
            return ((x @ (torch.exp2(shift) * linear.sign.sign()).T) * g).sum().detach()

        slope = (smooth(eps) - smooth(-eps)) / (2 * eps)
        torch.testing.assert_close(linear.shift.grad[o, i], slope, rtol=1e-6, atol=1e-8)


def test_out_of_range_shifts_learn_nothing() -> None:
    linear = ShiftLinear(torch.ones(1, 2))
    with torch.no_grad():
        linear.shift.copy_(torch.tensor([[3.0, -2.0]]))
    linear(torch.ones(1, 2)).sum().backward()
    assert linear.shift.grad[0, 0] == 0 and linear.shift.grad[0, 1] != 0


def test_a_converted_weight_is_at_most_41_percent_off_and_exact_where_it_is_a_power_of_two() -> None:
    weight_OI = torch.randn(100, 100)
    linear = ShiftLinear(weight_OI)
    inside = weight_OI.abs().log2().ge(-14.5) & weight_OI.abs().log2().le(0.5)
    error = ((linear.weight().detach() - weight_OI) / weight_OI).abs()[inside]
    assert 0.3 < float(error.max()) <= math.sqrt(2) - 1 + 1e-6
    powers_OI = torch.randn(100, 100).sign() * torch.exp2(torch.randint(-14, 1, (100, 100)).float())
    powers_OI[0] = 0
    linear.load(powers_OI)
    assert torch.equal(linear.weight().detach(), powers_OI)


def test_inputs_are_rounded_to_fixed_point_beside_the_original_and_gradients_pass() -> None:
    x = torch.tensor([1e-6, 0.3, -2.7182818, 4e4, -4e4], dtype=torch.double, requires_grad=True)
    before, y = x.detach().clone(), to_fixed_point(x)
    expected = [0.0, round(0.3 * 65536) / 65536, round(-2.7182818 * 65536) / 65536, 32768 - 1 / 65536, -32768.0]
    assert y.tolist() == expected and torch.equal(x.detach(), before)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(5, dtype=torch.double))
    assert to_fixed_point(torch.randn(3).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("form", [{}, {"activation": "gelu", "gated": False, "bias": True}])
def test_a_shift_ffn_is_an_ffn_with_the_rounded_weights_and_shift_experts_keep_the_contract(form: dict) -> None:
    dense, ffn = FFN(D, H, init_std=0.3, **form).double(), ShiftFFN(FFN(D, H, **form), fixed_point=False).double()
    ffn.load_ffn(dense)
    x_TD = torch.randn(9, D, dtype=torch.double)
    with torch.no_grad():
        dense.w_in.copy_(ffn.inner.weight())
        dense.w_out.copy_(ffn.outer.weight())
    torch.testing.assert_close(ffn(x_TD), dense(x_TD))
    check_experts(ShiftExperts([ShiftFFN(FFN(D, H, init_std=0.3, **form)) for _ in range(3)]), D)
    with pytest.raises(ConfigError, match=r"shift experts of form .* cannot be made of mlp"):
        ffn.load_ffn(FFN(D, H + 1, **form), "mlp")
    with pytest.raises(ConfigError, match="bits=1 of a shift"):
        ShiftLinear(torch.ones(2, 2), bits=1)


# -- the losses -------------------------------------------------------------------------------------------


def importance(share: float, costs: list[float] | None) -> float:
    scores_TN = torch.eye(2).repeat_interleave(torch.tensor([round(100 * share), 100 - round(100 * share)]), 0)
    plan = SparsePlan.from_topk(scores_TN.argmax(1, keepdim=True), torch.ones(100, 1), 2)
    loss = ImportanceLoss(1.0, of="scores", costs=costs)
    numerator, tokens = loss.compute(Routing(plan, None, scores_TN), context(100))
    return float(numerator / tokens)


def test_the_loss_is_0_where_shares_are_in_inverse_proportion_to_latency() -> None:
    assert importance(0.4, [6.0, 4.0]) == pytest.approx(0, abs=1e-9)
    assert importance(0.5, [6.0, 4.0]) == pytest.approx(0.08, rel=1e-5), "variance of a sample: 0.5 / 2.5^2"
    assert importance(0.5, [0.6, 0.4]) == pytest.approx(0.08, rel=1e-5), "in any unit"
    assert importance(0.5, None) == pytest.approx(0, abs=1e-9) and importance(0.4, None) > 0


def test_equal_latencies_give_the_plain_losses_and_expected_loads_are_costed_too() -> None:
    layer, x_TD = build(num_experts=4, shift_experts=2), torch.randn(60, D, dtype=torch.double)
    ctx = context(60)
    routing = layer.train().router.route(x_TD, ctx)
    for kind in (ImportanceLoss, LoadLoss):
        equal, plain = (kind(1.0, costs=costs).compute(routing, ctx)[0] for costs in ([3.0] * 4, None))
        torch.testing.assert_close(equal, plain)
    load_N = LoadLoss(1.0).mass(routing).sum(0) * torch.tensor([6.0, 6.0, 4.0, 4.0])
    expected = 60 * load_N.var() / load_N.mean() ** 2
    torch.testing.assert_close(layer.losses[1].compute(routing, ctx)[0], expected)


@pytest.mark.parametrize("slow", [6.0, 9.0])
def test_a_router_that_learns_from_the_losses_alone_sends_the_slow_expert_its_share(slow: float) -> None:
    torch.manual_seed(0)
    layer = build(multiply_latency=slow, shift_latency=4.0).float().train()
    with torch.no_grad():
        layer.router.gate.weight.copy_(torch.tensor([[1.0] * D, [-1.0] * D]) * 0.3)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    shares = []
    for step in range(150):
        x_TD = torch.randn(256, D) + 0.5  # a mean, for a gate without bias to work with
        ctx = context(256)
        routing = layer.router.route(x_TD, ctx)
        values = [numerator / tokens for numerator, tokens in (loss.compute(routing, ctx) for loss in layer.losses[:2])]
        optimizer.zero_grad()
        (values[0] + values[1]).backward()
        optimizer.step()
        if step >= 100:
            shares.append(float((routing.plan.expert_A == 0).float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(4 / (slow + 4), abs=0.05)


def test_costs_must_be_positive_and_one_for_each_expert() -> None:
    with pytest.raises(ConfigError, match="importance: costs must be positive"):
        libmoe.create("shiftadd-moe", shift_latency=0.0)
    with pytest.raises(ConfigError, match="3 costs given for 2 experts"):
        importance(0.5, [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="shift_experts=3 must be between 0 and num_experts=2"):
        libmoe.create("shiftadd-moe", shift_experts=3)
    check_loss(ImportanceLoss(0.1, of="scores", costs=[1.0, 2.0, 3.0, 4.0]))
    check_loss(LoadLoss(0.1, "sequence", costs=[1.0, 2.0, 3.0, 4.0]))


# -- the layer --------------------------------------------------------------------------------------------


def test_a_token_takes_its_best_expert_times_its_probability_and_the_router_learns_from_that() -> None:
    layer, x_TD = build(balance=0.0).train(), torch.randn(50, D, dtype=torch.double)
    ctx = context(50)
    routing = layer.route(x_TD, ctx)
    p_TN = routing.logits_TN.softmax(-1)
    assert torch.equal(routing.plan.expert_A, p_TN.argmax(1)) and len(set(routing.plan.expert_A.tolist())) == 2
    experts = [layer.experts.materialise(e) for e in range(2)]
    expected = torch.stack([p_TN[t, e] * experts[e](x_TD[t]) for t, e in enumerate(p_TN.argmax(1).tolist())])
    torch.testing.assert_close(layer.execute(x_TD, routing), expected)
    layer(x_TD[None]).sum().backward()
    assert float(layer.router.gate.weight.grad.abs().sum()) > 0


def test_noise_has_a_deviation_of_1_over_n_and_is_left_out_in_evaluation() -> None:
    layer, x_TD = build(num_experts=4, shift_experts=2).train(), torch.randn(20_000, D, dtype=torch.double)
    routing = layer.router.route(x_TD, context(20_000))
    noise_TN = routing.logits_TN - routing.extras["clean_TN"]
    assert float(noise_TN.std()) == pytest.approx(0.25, rel=0.02)
    layer.eval()
    torch.testing.assert_close(
        layer.router.route(x_TD, context(20_000, False)).logits_TN, routing.extras["clean_TN"]
    )


def test_both_kinds_are_made_of_the_same_dense_ffn() -> None:
    layer, dense = build(fixed_point=False), FFN(D, H, init_std=0.3).double()
    assert copy_into_experts(layer, dense, "mlp") == 2
    assert isinstance(layer.experts, UnionExperts)
    exact, rounded = (layer.experts.materialise(e) for e in range(2))
    x_TD = torch.randn(50, D, dtype=torch.double)
    torch.testing.assert_close(exact(x_TD), dense(x_TD))
    similarity = F.cosine_similarity(rounded(x_TD), dense(x_TD), dim=-1)
    assert float(similarity.mean()) > 0.9 and not torch.allclose(rounded(x_TD), dense(x_TD))


@pytest.mark.parametrize("given", [{"shift_experts": 2}, {"shift_experts": 0}, {"num_experts": 4, "top_k": 2}])
def test_other_numbers_of_either_kind_keep_the_contract(given: dict[str, Any]) -> None:
    check_method("shiftadd-moe", given)
