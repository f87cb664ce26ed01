"""Grove MoE (arXiv 2508.07785): adjugates shared by groups, two scores for two purposes, and growing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers import BiasUpdate
from libmoe.controllers.rms_bias import RMSBiasUpdate
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFN, FFNExperts, UnionExperts, ZeroExperts
from libmoe.experts.grove import GroveExperts, expected_groups
from libmoe.layers import MoELayer
from libmoe.methods.grove_moe import grow
from libmoe.models.accounting import account
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.upcycle import copy_into_experts
from libmoe.testing import check_experts, check_method

N, K, D, H = 8, 3, 10, 12
SITE = Site(D, 40, seed=0, init_std=0.3)


def build(name: str = "grove-moe", **options: Any) -> MoELayer:
    given = {"num_experts": N, "top_k": K, "expert_hidden": H} | options
    return libmoe.create(name, given).build_layer(SITE).double().eval()


def bank(groups: int = 4, scale: float = 0.3, **options: Any) -> GroveExperts:
    routed = FFNExperts(N, D, H, init_std=None)
    return GroveExperts(routed, groups, 5, scale, zero_init=False, init_std=None, **options).double()


def plan_of(expert_TK: Tensor, weight_TK: Tensor, **more: Any) -> SparsePlan:
    return SparsePlan.from_topk(expert_TK, weight_TK, N, **more)


def drawn(tokens: int = 40, k: int = K) -> SparsePlan:
    logits_TN = torch.randn(tokens, N, dtype=torch.double)
    top = logits_TN.topk(k)
    return plan_of(top.indices, top.values.softmax(-1).requires_grad_())


def naive(experts: GroveExperts, x_TD: Tensor, plan: SparsePlan) -> Tensor:
    """Each choice with the adjugate of its group, one after the other."""
    rows = []
    for t, x_D in enumerate(x_TD):
        y_D = torch.zeros(D, dtype=x_TD.dtype)
        for e, w in zip(plan.expert_A.view(-1, plan.k)[t].tolist(), plan.weight_A.view(-1, plan.k)[t], strict=True):
            y_D = y_D + w * ffn(experts.routed, e, x_D)
            y_D = y_D + w * experts.scale * ffn(experts.adjugates, e // experts.members, x_D)
        rows.append(y_D)
    return torch.stack(rows)


def ffn(experts: FFNExperts, e: int, x_D: Tensor) -> Tensor:
    gate, up = (experts.w_in[e] @ x_D).chunk(2)
    return experts.w_out[e] @ (nn.functional.silu(gate) * up)


# -- the experts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_computing_each_adjugate_once_equals_one_for_each_choice_in_value_and_gradients(groups: int) -> None:
    experts, plan = bank(groups), drawn()
    x_TD = torch.randn(40, D, dtype=torch.double, requires_grad=True)
    grad_TD = torch.randn(40, D, dtype=torch.double)
    leaves = [x_TD, *experts.parameters()]
    found, expected = experts.execute(x_TD, plan), naive(experts, x_TD, plan)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(found, leaves, grad_TD)
    theirs = torch.autograd.grad(expected, leaves, grad_TD)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_weights_get_the_same_gradient_either_way() -> None:
    experts, plan, x_TD = bank(), drawn(), torch.randn(40, D, dtype=torch.double)
    grad_TD, weight_A = torch.randn(40, D, dtype=torch.double), plan.weight_A
    (ours,) = torch.autograd.grad(experts.execute(x_TD, plan), weight_A, grad_TD)
    (theirs,) = torch.autograd.grad(naive(experts, x_TD, plan), weight_A, grad_TD)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_adjugates_process_one_row_for_each_token_and_group_and_no_more() -> None:
    experts, plan = bank(), drawn()
    rows: list[int] = []
    run = experts.adjugates.execute

    def count(x_TD: Tensor, groups: SparsePlan) -> Tensor:
        rows.append(len(groups.order_R))
        return run(x_TD, groups)

    experts.adjugates.execute = count
    experts.execute(torch.randn(40, D, dtype=torch.double), plan)
    distinct = sum(len({e // 2 for e in row}) for row in plan.expert_A.view(40, K).tolist())
    assert rows == [distinct] and distinct < 40 * K


@pytest.mark.parametrize(("groups", "k"), [(4, 3), (2, 5), (8, 3), (1, 2), (4, 8)])
def test_a_token_uses_between_the_fewest_and_the_most_groups_that_k_experts_can_have(groups: int, k: int) -> None:
    used_T = bank(groups).group_plan(drawn(500, k)).experts_per_token()
    assert used_T.min() >= math.ceil(k * groups / N) and used_T.max() <= min(k, groups)


def test_choices_in_one_group_use_one_adjugate_with_the_whole_scale() -> None:
    experts = bank(2)
    weight_TK = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.double)
    groups = experts.group_plan(plan_of(torch.tensor([[4, 6, 5, 7]]), weight_TK))
    assert groups.expert_A.tolist() == [1]
    torch.testing.assert_close(groups.weight_A, torch.ones(1, dtype=torch.double))


def test_equal_experts_and_equal_adjugates_give_their_sum_whatever_the_routing() -> None:
    experts, x_TD = bank(), torch.randn(40, D, dtype=torch.double)
    with torch.no_grad():
        for part in (experts.routed, experts.adjugates):
            for param in part.parameters():
                param.copy_(param[:1].expand_as(param))
    expected = torch.stack([ffn(experts.routed, 0, x) + 0.3 * ffn(experts.adjugates, 0, x) for x in x_TD])
    torch.testing.assert_close(experts.execute(x_TD, drawn()), expected)


def test_a_dropped_choice_takes_its_adjugate_along() -> None:
    experts, x_TD = bank(), torch.randn(2, D, dtype=torch.double)
    expert_TK, kept_TK = torch.tensor([[0, 1], [2, 4]]), torch.tensor([[True, False], [False, True]])
    weight_TK = torch.full((2, 2), 0.5, dtype=torch.double)
    found = experts.execute(x_TD, plan_of(expert_TK, weight_TK, kept_TK=kept_TK))
    expected = [
        0.5 * (ffn(experts.routed, e, x) + 0.3 * ffn(experts.adjugates, e // 2, x)) for e, x in zip((0, 4), x_TD)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_other_plans_go_the_longer_way_to_the_same_result() -> None:
    experts, plan, x_TD = bank(), drawn(), torch.randn(40, D, dtype=torch.double)
    x_AD = x_TD[plan.token_A]
    torch.testing.assert_close(experts.execute(x_TD, plan, x_AD), experts.execute(x_TD, plan))
    shift_TD = torch.randn(6, D, dtype=torch.double)
    slots = torch.eye(N, dtype=torch.double)[:, :6].T[None].contiguous()  # token t is the slot of expert t
    soft = experts.execute(shift_TD, SoftPlan(slots, slots, N))
    torch.testing.assert_close(soft, torch.stack([experts.materialise(e)(x) for e, x in enumerate(shift_TD)]))
    merged = experts.execute(shift_TD, MergePlan(torch.eye(N, dtype=torch.double)[:6], 6))
    torch.testing.assert_close(merged, soft)


@pytest.mark.parametrize("form", [{}, {"bias": True, "gated": False, "activation": "gelu"}, {"bias": True}])
def test_grove_experts_keep_the_contract(form: dict[str, Any]) -> None:
    routed = FFNExperts(6, D, 5, init_std=None, **form)
    experts = GroveExperts(routed, 3, 4, 0.3, zero_init=False, init_std=None)
    for param in experts.parameters():
        nn.init.normal_(param, std=0.4)
    check_experts(experts, D)


def test_groups_must_divide_the_experts() -> None:
    with pytest.raises(ConfigError, match="groups=3 must divide num_experts=8"):
        bank(3)
    with pytest.raises(ConfigError, match="groups=3 must divide num_experts=8"):
        libmoe.create("grove-moe", num_experts=8, groups=3)
    with pytest.raises(ConfigError, match="adjugate_hidden=0 must be at least 1"):
        libmoe.create("grove-moe", adjugate_hidden=0)
    with pytest.warns(UserWarning, match="scale=0.6 exceeds groups / num_experts = 0.5"):
        libmoe.create("grove-moe", scale=0.6)


# -- costs ------------------------------------------------------------------------------------------------


def test_the_mean_number_of_groups_is_that_of_random_choices() -> None:
    for n, groups, k in ((8, 4, 3), (12, 3, 2), (128, 64, 8)):
        chosen = torch.rand(20_000, n).topk(k).indices // (n // groups)
        used = torch.zeros(20_000, groups).scatter(1, chosen, 1.0).sum(1).mean()
        assert expected_groups(n, groups, k) == pytest.approx(float(used), rel=0.01)
    assert expected_groups(8, 4, 8) == 4 and expected_groups(8, 8, 3) == pytest.approx(3)


def test_parameters_are_those_of_the_released_model() -> None:
    """2.416 billion in adjugates, of which 4 to 8 in a layer are active: 0.151 to 0.302 billion (in 48 layers)."""
    with torch.device("meta"):
        experts = GroveExperts(FFNExperts(128, 2048, 768), 64, 128)
    each = sum(p[0].numel() for p in experts.adjugates.parameters())
    assert each == 786_432
    assert 48 * 64 * each == pytest.approx(2.416e9, rel=1e-3)
    assert (48 * 4 * each, 48 * 8 * each) == (pytest.approx(0.151e9, rel=2e-3), pytest.approx(0.302e9, rel=2e-3))
    used = (64 * each + 128 * 3 * 2048 * 768 - experts.idle_params([8 / 128] * 128)) - 8 * 3 * 2048 * 768
    assert used / each == pytest.approx(expected_groups(128, 64, 8)) and 7 < used / each < 8


def test_a_model_is_charged_for_adjugates_once_in_a_union_too() -> None:
    experts, loads = bank(), [K / N] * N
    adjugate, own = experts.adjugates.flops_per_row()[0], experts.routed.flops_per_row()[0]
    expected = K * own + expected_groups(N, 4, K) * adjugate
    assert experts.flops_per_token(loads) == pytest.approx(expected)
    assert expected < K * (own + adjugate)
    union = UnionExperts([ZeroExperts(2), experts])
    assert union.flops_per_token([0.5, 0.5, *loads]) == pytest.approx(expected)
    assert union.idle_params([0.5, 0.5, *loads]) == pytest.approx(experts.idle_params(loads))
    config = BackboneConfig("llama", hidden_size=48, num_hidden_layers=2, intermediate_size=240, vocab_size=77)
    grove, dense = (account(libmoe.moeify(build_backbone(config), name, seed=0)) for name in ("grove-moe", "dense"))
    assert grove.active_params == pytest.approx(dense.active_params, rel=0.05)
    assert grove.flops_per_token == pytest.approx(dense.flops_per_token, rel=0.05)


# -- the router -------------------------------------------------------------------------------------------


def routed(layer: MoELayer, x_TD: Tensor) -> SparsePlan:
    return layer.router.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training)).plan


def test_weights_are_the_softmax_over_all_divided_by_the_sum_of_the_chosen() -> None:
    layer, x_TD = build(), torch.randn(30, D, dtype=torch.double)
    plan, p_TN = routed(layer, x_TD), (x_TD @ layer.router.gate.weight.T).softmax(-1)
    chosen_TK = p_TN.gather(1, plan.expert_A.view(30, K))
    torch.testing.assert_close(plan.weight_A.view(30, K), chosen_TK / chosen_TK.sum(1, keepdim=True))
    other = build(renormalise=False)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(routed(other, x_TD).weight_A.view(30, K), chosen_TK)


def test_without_a_bias_the_choice_is_that_of_the_softmax() -> None:
    layer, x_TD = build(), torch.randn(200, D, dtype=torch.double)
    assert torch.equal(routed(layer, x_TD).expert_A.view(200, K), (x_TD @ layer.router.gate.weight.T).topk(K).indices)


def test_a_bias_changes_the_choice_and_not_the_weights_of_what_is_chosen() -> None:
    layer, x_TD = build(), torch.randn(200, D, dtype=torch.double)
    before = routed(layer, x_TD)
    layer.router.selection_bias.copy_(0.2 * torch.randn(N))
    after = routed(layer, x_TD)
    assert not torch.equal(before.expert_A, after.expert_A)
    logits_TK = (x_TD @ layer.router.gate.weight.T).gather(1, after.expert_A.view(200, K))
    torch.testing.assert_close(after.weight_A.view(200, K), logits_TK.softmax(-1))
    bias = layer.router.selection_bias.requires_grad_()
    y_TD = layer(x_TD[None])
    assert torch.autograd.grad(y_TD.square().sum(), bias, allow_unused=True) == (None,)


def test_as_released_the_bias_is_left_out_in_evaluation() -> None:
    layer, x_TD = build(bias_in_evaluation=False), torch.randn(200, D, dtype=torch.double)
    layer.router.selection_bias.copy_(0.2 * torch.randn(N))
    plain = (x_TD @ layer.router.gate.weight.T).topk(K).indices.flatten()
    assert torch.equal(routed(layer, x_TD).expert_A, plain)
    assert not torch.equal(routed(layer.train(), x_TD).expert_A, plain)


def test_biases_move_by_the_error_on_the_scale_of_the_errors() -> None:
    load_N = torch.tensor([10.0, 20.0, 30.0, 60.0])
    share_N = load_N / load_N.sum()
    error_N = share_N - 0.25
    torch.testing.assert_close(
        RMSBiasUpdate(0.001).change(load_N), -0.001 * error_N / error_N.square().mean().sqrt()
    )
    assert not RMSBiasUpdate(0.001).change(torch.full((4,), 7.0)).any()
    assert torch.equal(BiasUpdate(0.1).change(load_N), torch.tensor([0.1, 0.1, 0.0, -0.1]))


def test_biases_balance_a_model_that_nothing_else_balances() -> None:
    spread = {}
    for rate in (0.0, 0.02):
        torch.manual_seed(0)
        model = TinyLM("grove-moe", num_experts=N, top_k=2, bias_update_rate=rate)
        loads: list[Tensor] = []
        drive(
            model,
            model.method,
            lambda step, model=model: model.loss(chain(40, 8, 16, seed=step)),
            80,
            each=lambda info, loads=loads: loads.append(info.loads[0].count_N),
        )
        last_N = torch.stack(loads[-20:]).sum(0)
        spread[rate] = float(last_N.std() / last_N.mean())
    assert spread[0.02] < 0.5 * spread[0.0], spread


# -- growing ----------------------------------------------------------------------------------------------


def test_a_grown_layer_computes_what_the_moe_computed() -> None:
    source, layer = build("smoe"), build()
    with torch.no_grad():
        source.router.gate.weight.normal_()
    grow(layer, source)
    x = torch.randn(2, 30, D, dtype=torch.double)
    torch.testing.assert_close(layer(x), source(x), rtol=0, atol=1e-12)
    with torch.no_grad():
        layer.experts.adjugates.w_out.normal_()
    assert (layer(x) - source(x)).abs().max() > 1e-3


def test_whole_models_grow_and_what_does_not_fit_is_named() -> None:
    config = BackboneConfig("llama", hidden_size=16, num_hidden_layers=2, intermediate_size=24, vocab_size=31)
    options = {"num_experts": 4, "top_k": 2, "expert_hidden": 12}
    source = libmoe.moeify(build_backbone(config), "smoe", options=options, seed=1).eval()
    grove = libmoe.moeify(build_backbone(config), "grove-moe", options=options, seed=2).eval()
    grow(grove, source)
    ids = torch.randint(31, (2, 9))
    torch.testing.assert_close(grove(input_ids=ids).logits, source(input_ids=ids).logits, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="grow: the two do not fit"):
        grow(build(), build("smoe", num_experts=4))


def test_copies_of_a_dense_ffn_compute_it_and_adjugates_stay_as_they_are() -> None:
    layer = build(expert_hidden=40)
    dense = FFN(D, 40, init_std=0.3).double()
    assert copy_into_experts(layer, dense, "mlp") == N
    x = torch.randn(2, 9, D, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


def test_other_groups_and_widths_keep_the_contract() -> None:
    check_method("grove-moe", {"groups": 2, "adjugate_hidden": 3, "zero_init": False, "bias_in_evaluation": False})
