"""DS-MoE (arXiv 2404.05567): dense and exact while training, sparse afterwards, and the loss that allows it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import MoELayer
from libmoe.methods.ds_moe import infer_with
from libmoe.models import account, build_backbone, moeify
from libmoe.models.backbones import BackboneConfig
from libmoe.testing import check_method

N, D, H = 8, 12, 32


def build(training: bool = True, gated: bool = False, std: float = 0.5, **given: Any) -> MoELayer:
    given = {"num_experts": N, "top_k": 3} | given
    site = Site(D, H, activation="gelu", gated=gated, seed=0, init_std=0.3)
    layer = libmoe.create("ds-moe", **given).build_layer(site)
    nn.init.normal_(layer.router.gate.weight, std=std)
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor, **inputs: Tensor) -> Routing:
    return layer.route(x_TD, ForwardContext(inputs).layer(0, (1, len(x_TD)), layer.training))


def output(layer: MoELayer, x_TD: Tensor) -> Tensor:
    return layer.execute(x_TD, route(layer, x_TD))


def test_an_undecided_gate_on_a_dense_ffn_cut_into_experts_gives_the_ffn_over_n() -> None:
    layer, x_TD = build(std=0.0), torch.randn(20, D).double()
    ffn = FFN(D, H, "gelu", gated=False, init_std=0.3).double()
    assert layer.experts.hidden == H // N
    with torch.no_grad():
        layer.experts.w_in.copy_(ffn.w_in.view(N, H // N, D))
        layer.experts.w_out.copy_(ffn.w_out.view(D, N, H // N).transpose(0, 1))
    torch.testing.assert_close(output(layer, x_TD), ffn(x_TD) / N)


def test_training_and_all_gradients_are_those_of_the_sum_over_all_experts() -> None:
    layer, x_TD, grad_TD = build(), torch.randn(20, D).double(), torch.randn(20, D).double()
    plan = route(layer, x_TD).plan
    assert plan.k == N and (plan.experts_per_token() == N).all()
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad((output(layer, x_TD) * grad_TD).sum(), list(parameters.values()))
    scores_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
    y_TD = sum(
        scores_TN[:, i : i + 1] * (F.gelu(x_TD @ layer.experts.w_in[i].T) @ layer.experts.w_out[i].T) for i in range(N)
    )
    expected = torch.autograd.grad((y_TD * grad_TD).sum(), list(parameters.values()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_token_trains_every_expert_and_the_gate_has_no_discontinuity() -> None:
    layer, x_TD = build(), torch.randn(6, D).double()
    for t in range(6):
        w_in, w_out = torch.autograd.grad(
            output(layer, x_TD[t : t + 1]).square().sum(), [layer.experts.w_in, layer.experts.w_out]
        )
        assert (w_in.flatten(1).norm(dim=1) > 0).all() and (w_out.flatten(1).norm(dim=1) > 0).all()
    weight = layer.router.gate.weight
    (gradient,) = torch.autograd.grad(output(layer, x_TD).square().sum(), [weight])
    direction, step = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(sign * step * direction)
            values.append(output(layer, x_TD).square().sum())
            weight.sub_(sign * step * direction)
    numeric = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("given", [{"top_k": N}, {"policy": "threshold", "threshold": 0.0}])
def test_all_experts_at_inference_are_the_layer_as_trained(given: dict[str, Any]) -> None:
    layer, x_TD = build(**given), torch.randn(30, D).double()
    expected = output(layer, x_TD)
    torch.testing.assert_close(output(layer.eval(), x_TD), expected)


def test_a_higher_threshold_never_takes_more_and_below_1_somebody_always_works() -> None:
    layer, x_TD = build(False, policy="threshold"), torch.randn(300, D).double()
    scores_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
    previous_T, shares = torch.full((300,), N), []
    for eps in (0.0, 0.3, 0.48, 0.9, 0.999, 2.0, 8.0):
        infer_with(layer, "threshold", threshold=eps)
        plan = route(layer, x_TD).plan
        assert torch.equal(
            torch.stack([plan.token_A, plan.expert_A]), torch.stack((N * scores_TN > eps).nonzero(as_tuple=True))
        )
        torch.testing.assert_close(plan.weight_A, scores_TN[plan.token_A, plan.expert_A], msg="not renormalised")
        count_T = plan.experts_per_token()
        assert (count_T <= previous_T).all()
        assert eps >= 1 or bool((count_T >= 1).all())
        previous_T, shares = count_T, [*shares, count_T.double().mean().item() / N]
    assert shares[0] == 1 and shares[-1] == 0 and all(later < earlier for earlier, later in pairwise(shares))
    assert (layer.execute(x_TD, route(layer, x_TD)) == 0).all()


def test_top_k_takes_the_best_and_leaves_their_weights_or_renormalises() -> None:
    x_TD = torch.randn(40, D).double()
    for renormalise in (False, True):
        layer = build(False, renormalise=renormalise)
        plan = route(layer, x_TD).plan
        scores_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
        best_T3 = scores_TN.topk(3, dim=1)
        weight_TN = torch.zeros(40, N).double().index_put((plan.token_A, plan.expert_A), plan.weight_A)
        expected_T3 = best_T3.values / (best_T3.values.sum(1, keepdim=True) if renormalise else 1)
        torch.testing.assert_close(weight_TN, torch.zeros(40, N).double().scatter(1, best_T3.indices, expected_T3))


def test_k_of_the_third_policy_is_the_mean_number_above_the_threshold_over_real_tokens() -> None:
    layer, x_TD = build(False, policy="threshold-top-k", threshold=0.9), torch.randn(40, D).double()
    mask_BL = torch.ones(1, 40, dtype=torch.long)
    mask_BL[0, 10:] = 0
    scores_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
    above_T = (N * scores_TN > 0.9).sum(1).double()
    whole, part = math.floor(above_T.mean() + 0.5), math.floor(above_T[:10].mean() + 0.5)
    assert (route(layer, x_TD).plan.experts_per_token() == whole).all()
    assert (route(layer, x_TD, attention_mask=mask_BL).plan.experts_per_token() == part).all()
    assert not layer.router.causal and not layer.router.batch_independent
    infer_with(layer, "top-k", top_k=2)
    assert layer.router.causal and (route(layer, x_TD).plan.experts_per_token() == 2).all()
    assert layer.router.expected_load() == [2 / N] * N and layer.router.training_load() == [1.0] * N


def information(scores_TN: Tensor) -> float:
    layer = build(mutual_information=1.0)
    plan = SparsePlan.from_mask(scores_TN, torch.ones_like(scores_TN, dtype=torch.bool))
    ctx = ForwardContext().layer(0, (1, len(scores_TN)), True)
    parts = [loss.compute(Routing(plan, scores_TN.log(), scores_TN), ctx) for loss in layer.losses[:2]]
    assert [loss.coefficient for loss in layer.losses[:2]] == [1.0, 1.0]
    return sum(float(numerator / tokens) for numerator, tokens in parts)


def test_the_loss_is_minus_the_mutual_information_between_minus_ln_n_and_0() -> None:
    torch.manual_seed(0)
    one_hot_TN = torch.eye(N).double().repeat(4, 1)
    assert information(one_hot_TN) == pytest.approx(-math.log(N))
    assert information(torch.full((16, N), 1 / N).double()) == pytest.approx(0, abs=1e-12)
    same_TN = torch.rand(1, N).double().softmax(1).expand(16, -1)
    assert information(same_TN) == pytest.approx(0, abs=1e-12)
    assert information(torch.eye(N).double()[:1].expand(16, -1)) == pytest.approx(0, abs=1e-12)
    scores_TN = (3 * torch.randn(50, N)).double().softmax(1)
    p_N = scores_TN.mean(0)
    expected = (scores_TN * (scores_TN / p_N).log()).sum(1).mean()
    assert information(scores_TN) == pytest.approx(-float(expected)) and -math.log(N) < information(scores_TN) < 0


def test_with_the_loss_a_third_of_the_experts_is_nearly_enough_and_without_it_is_not() -> None:
    """Rise of the loss when 5 of 16 experts are kept, after training with alpha = 0.2 and 0 in one layer."""
    rise = {}
    for alpha in (0.2, 0.0):
        torch.manual_seed(0)
        model = TinyLM("ds-moe", num_experts=16, top_k=5, mutual_information=alpha, hidden=64)
        drive(model, model.method, lambda step, model=model: model.loss(chain(40, 8, 16, seed=step)), 250)
        losses = []
        for k in (16, 5):
            infer_with(model.eval(), "top-k", top_k=k)
            with torch.no_grad():
                losses.append(model.loss(chain(40, 64, 16, seed=9999)).item())
        rise[alpha] = losses[1] / losses[0] - 1
    assert rise[0.2] < 0.002
    assert rise[0.0] > 5 * rise[0.2]


def test_interventions_reach_both_modes() -> None:
    for training in (True, False):
        with options(interventions=[BanExperts([3]), ForceTopK(2)]):
            layer = build(training)
            ctx = ForwardContext().layer(0, (1, 30), training)
        plan = layer.route(torch.randn(30, D).double(), ctx).plan
        assert 3 not in plan.expert_A.tolist() and (plan.experts_per_token() == 2).all()


def test_training_costs_as_much_as_the_dense_ffn_and_inference_a_part() -> None:
    config = BackboneConfig(
        "llama", hidden_size=32, num_hidden_layers=2, intermediate_size=64, vocab_size=77, num_attention_heads=4
    )
    dense, whole, few = (
        account(model)
        for model in (
            build_backbone(config),
            moeify(build_backbone(config), "ds-moe", options={"num_experts": 8, "top_k": 8}),
            moeify(build_backbone(config), "ds-moe", options={"num_experts": 8, "top_k": 2}),
        )
    )
    gates_and_mixing = 2 * (2 * 8 * 32 + 2 * 8 * 32)
    assert whole.flops_per_token == dense.flops_per_token + gates_and_mixing
    assert few.train_flops_per_token == whole.train_flops_per_token == 3 * whole.flops_per_token
    experts = 2 * 2 * 3 * 32 * 64
    assert whole.flops_per_token - few.flops_per_token == 0.75 * (experts + 2 * 2 * 8 * 32)


@pytest.mark.parametrize(
    "given", [{"policy": "threshold"}, {"policy": "threshold-top-k", "threshold": 1.0}, {"renormalise": True}]
)
def test_the_policies_keep_the_contract(given: dict[str, Any]) -> None:
    if given.get("policy") == "threshold-top-k":
        layer = build(False, **given)
        assert not layer.router.causal
    check_method("ds-moe", given)


def test_what_makes_no_sense_is_refused() -> None:
    for given, message in (
        ({"balance": 0.1}, "ds-moe is balanced by mutual_information"),
        ({"threshold": -1.0}, "threshold=-1.0 must not be negative"),
        ({"mutual_information": -1.0}, "coefficient must not be negative"),
        ({"policy": "treshold"}, "did you mean 'threshold'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**given)
    with pytest.raises(ConfigError, match="has no DenseTrainingRouter; put the method 'ds-moe'"):
        infer_with(nn.Linear(2, 2), "top-k")
