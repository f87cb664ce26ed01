"""MoFME (arXiv 2312.16610): modulations before one FFN, and weights calibrated by repeated passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from driven import TinyLM, chain, drive
from libmoe.core.context import ForwardContext, LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFN, FFNExperts
from libmoe.experts.modulated import ModulatedFFN, ModulationExperts
from libmoe.models.accounting import account
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.routers.uncertain import FLOOR, UncertaintyRouter
from libmoe.testing import check_experts, check_method

N, K, D, H = 6, 3, 10, 14


def bank(**form: Any) -> ModulatedFFN:
    torch.manual_seed(0)
    return ModulatedFFN(ModulationExperts(N, D, 0.3), FFN(D, H, init_std=0.3, **form)).double()


def drawn(tokens: int = 30, k: int = K) -> SparsePlan:
    top = torch.randn(tokens, N, dtype=torch.double).topk(k)
    return SparsePlan.from_topk(top.indices, top.values.softmax(-1), N)


def router(training: bool = True, **given: Any) -> UncertaintyRouter:
    made = UncertaintyRouter(D, N, **({"top_k": K} | given)).double().train(training)
    torch.nn.init.normal_(made.gate.weight, std=0.5)
    return made


def context(tokens: int = 30, training: bool = True) -> LayerContext:
    return ForwardContext().layer(0, (1, tokens), training)


# -- experts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_ffn_runs_once_for_a_token_however_many_experts_it_has(k: int) -> None:
    experts, plan, x_TD = bank(), drawn(k=k), torch.randn(30, D, dtype=torch.double)
    rows: list[int] = []
    experts.body.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    y_TD = experts.execute(x_TD, plan)
    assert rows == [30]
    for t in range(30):
        z_D = torch.zeros(D, dtype=torch.double)
        for e, w in zip(plan.expert_A.view(30, k)[t].tolist(), plan.weight_A.view(30, k)[t], strict=True):
            gamma, beta = (experts.modulations.w[e] @ x_TD[t] + experts.modulations.b[e]).chunk(2)
            z_D = z_D + w * (gamma * x_TD[t] + beta)
        torch.testing.assert_close(y_TD[t], experts.body(z_D))


def test_the_order_matters_unless_the_ffn_is_linear() -> None:
    x_TD, plan = torch.randn(30, D, dtype=torch.double), drawn()
    for form, equal in (({}, False), ({"gated": False, "activation": "linear"}, True)):
        experts = bank(**form)
        mixed_afterwards = plan.execute(experts, x_TD)  # the weighted sum of FFN(E_i(x))
        assert torch.allclose(experts.execute(x_TD, plan), mixed_afterwards) == equal


def test_with_scale_1_and_shift_0_any_routing_gives_the_shared_ffn() -> None:
    experts, x_TD = bank(), torch.randn(30, D, dtype=torch.double)
    with torch.no_grad():
        experts.modulations.w.zero_()
    torch.testing.assert_close(experts.execute(x_TD, drawn()), experts.body(x_TD))


def test_an_expert_costs_two_square_matrices_and_the_ffn_is_counted_once() -> None:
    dim, count = 384, 16
    with torch.device("meta"):
        ours = ModulatedFFN(ModulationExperts(count, dim), FFN(dim, 4 * dim, "gelu", False, True))
        usual = FFNExperts(count, dim, 4 * dim, "gelu", False, True)
    assert ours.params_per_expert() == [2 * (dim * dim + dim)] * count
    total, others = (sum(p.numel() for p in bank.parameters()) for bank in (ours, usual))
    assert others / total == pytest.approx(3.2, abs=0.1), "the paper's 72 % less are of whole models"
    body = 2 * 8 * dim * dim
    assert ours.flops_per_token([2 / count] * count) == pytest.approx(2 * 4 * dim * dim + body)
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=120, vocab_size=77)
    mofme, dense = (account(libmoe.moeify(build_backbone(config), name, seed=0)) for name in ("mofme", "dense"))
    assert mofme.active_params == pytest.approx(dense.active_params, rel=0.05)


@pytest.mark.parametrize("form", [{}, {"bias": True, "gated": False, "activation": "gelu"}])
def test_modulated_experts_keep_the_contract(form: dict[str, Any]) -> None:
    check_experts(bank(**form), D)
    check_experts(bank().modulations, D)


# -- router -----------------------------------------------------------------------------------------------


def test_evaluation_is_one_pass_without_dropout() -> None:
    made, x_TD = router(False), torch.randn(30, D, dtype=torch.double)
    plan = made.route(x_TD, context(training=False)).plan
    top = (x_TD @ made.gate.weight.T).topk(K)
    assert torch.equal(plan.expert_A.view(30, K), top.indices)
    torch.testing.assert_close(plan.weight_A.view(30, K), top.values.softmax(-1))


def test_passes_differ_and_agree_in_the_mean() -> None:
    made, x_TD = router(passes=4000, dropout=0.3), torch.randn(5, D, dtype=torch.double)
    sampled_MTN = made.sampled_logits(x_TD, context(5))
    assert sampled_MTN.shape == (4000, 5, N) and sampled_MTN.std(0).min().item() > 0.05
    torch.testing.assert_close(sampled_MTN.mean(0), x_TD @ made.gate.weight.T, rtol=0, atol=0.1)


def test_as_printed_weights_are_whitened_and_of_length_1_and_some_are_negative() -> None:
    made, x_TD = router(calibration="paper"), torch.randn(30, D, dtype=torch.double)
    ctx = context()
    sampled_MTN = made.sampled_logits(x_TD, ctx)
    plan = made.route(x_TD, ctx).plan
    weight_TK = plan.weight_A.view(30, K)
    for t in range(30):
        r_MK = sampled_MTN[:, t, plan.expert_A.view(30, K)[t]].softmax(-1)
        covariance = torch.cov(r_MK.T) + FLOOR * torch.eye(K, dtype=torch.double)
        white_K = torch.linalg.inv(covariance) @ (r_MK[0] - r_MK.mean(0))
        torch.testing.assert_close(weight_TK[t], white_K / (white_K.norm() + FLOOR), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(weight_TK.norm(dim=1), torch.ones(30, dtype=torch.double), rtol=0, atol=1e-4)
    assert float(weight_TK.min()) < 0


def test_as_printed_two_experts_get_opposite_weights_of_one_size_and_the_router_learns_nothing() -> None:
    for calibration, learns in (("paper", False), ("precision", True)):
        made = router(top_k=2, calibration=calibration)
        weight_TK = made.route(torch.randn(200, D, dtype=torch.double), context(200)).plan.weight_A.view(200, 2)
        (gradient,) = torch.autograd.grad(weight_TK[:, 0].sum(), made.gate.weight)
        assert (float(gradient.abs().max()) > 1e-2) == learns
        if not learns:
            torch.testing.assert_close(weight_TK[:, 0], -weight_TK[:, 1], rtol=0, atol=1e-6)
            size_T = weight_TK[:, 0].abs()
            torch.testing.assert_close(size_T, torch.full_like(size_T, 0.5**0.5), rtol=0, atol=1e-3)
            assert 0.3 < float((weight_TK[:, 0] > 0).double().mean()) < 0.7, "a coin decides which"


def test_passes_that_agree_would_give_weights_of_0_and_cannot_be_asked_for() -> None:
    r_MTK = torch.rand(1, 4, K, dtype=torch.double).softmax(-1).expand(5, -1, -1)
    assert not router(calibration="paper").calibrate(r_MTK).any()
    torch.testing.assert_close(router().calibrate(r_MTK), r_MTK[0])
    for given, match in (
        ({"dropout": 0.0}, r"dropout=0\.0 must be between 0 and 1"),
        ({"passes": 1}, "passes=1 must be at least 2"),
        ({"calibration": "paper", "top_k": 1}, "top_k=1: a single weight has no variance"),
    ):
        with pytest.raises(ConfigError, match=match):
            router(**given)


def test_covariances_stay_in_full_precision_under_autocast() -> None:
    made = router(calibration="paper").float()
    x_TD, ctx = torch.randn(30, D), context()
    weight_A = made.route(x_TD, ctx).plan.weight_A
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.route(x_TD, ctx).plan.weight_A, weight_A)


def test_by_precision_a_weight_shrinks_with_its_variance_and_weights_sum_to_1() -> None:
    made, spread_M1 = router(), torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.double)
    weights = []
    for size in (0.0, 0.01, 0.05):
        r_MTK = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.double).repeat(5, 1, 1)
        r_MTK[:, 0, 1] += size * spread_M1
        r_MTK[:, 0, 2] += 0.003 * spread_M1
        weights.append(made.calibrate(r_MTK)[0])
    assert weights[0][1] > weights[1][1] > weights[2][1] > 0
    torch.testing.assert_close(torch.stack(weights).sum(1), torch.ones(3, dtype=torch.double))


def test_a_model_trains_better_with_weights_that_keep_the_mean() -> None:
    """Held-out loss of the form as printed and of the one by precision; the same experts, data and steps."""
    losses: dict[str, float] = {}
    for calibration in ("paper", "precision"):
        torch.manual_seed(0)
        model = TinyLM("uncertainty-aware", num_experts=N, calibration=calibration)
        drive(model, model.method, lambda step, model=model: model.loss(chain(40, 8, 16, seed=step)), 120)
        with torch.no_grad():
            losses[calibration] = float(model.eval().loss(chain(40, 64, 16, seed=10_000)))
    assert losses["precision"] < losses["paper"], losses


@pytest.mark.parametrize("name", ["mofme", "uncertainty-aware"])
def test_as_printed_the_contract_is_kept_too(name: str) -> None:
    check_method(name, {"calibration": "paper", "top_k": 3, "passes": 3})


def test_a_new_layer_is_near_its_shared_ffn() -> None:
    layer = libmoe.create("mofme", num_experts=N).build_layer(Site(D, 40, seed=0)).double().eval()
    x: Tensor = torch.randn(2, 9, D, dtype=torch.double)
    assert float(torch.cosine_similarity(layer(x), layer.experts.body(x), dim=-1).min()) > 0.95


def test_dropped_experts_have_no_weight_in_training() -> None:
    """What top-k routers can do otherwise holds for the calibrated one, too."""
    x_TD = torch.randn(30, D, dtype=torch.double)
    weight_A = router(expert_dropout=0.6)(x_TD, context()).plan.weight_A
    assert 0 < int((weight_A == 0).sum()) < len(weight_A)
