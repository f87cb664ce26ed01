"""Tutel's gates, places and losses (arXiv 2206.03382)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.methods.tutel import capacity_rule
from libmoe.routers import TemperedCosineGate
from libmoe.routers.places import Places

N, D, T = 4, 6, 42


def build(training: bool = True, **options: Any) -> MoELayer:
    method = libmoe.create("tutel", **({"num_experts": N, "balance": 0.0} | options))
    layer = method.build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    if options.get("gate") != "cosine":
        torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    return layer


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def ctx(training: bool = True, count: int = T) -> Any:
    return ForwardContext().layer(0, (1, count), training)


def route(logits_TN: Tensor, **options: Any) -> Routing:
    router = build(**options).router
    router.gate = torch.nn.Identity()
    return router.route(logits_TN, ctx(count=len(logits_TN)))


# -- capacity ---------------------------------------------------------------------------------------------


def test_places_are_k_times_a_truncated_share() -> None:
    assert Places(rounding="share").count(10, 2, 4, 1.0) == 2 * math.ceil(10 / 4) == 6
    assert Places(rounding="share").count(10, 2, 4, 1.25) == 2 * int(3.75) == 6, "other rules give 7 or 8"
    assert (Places().count(10, 2, 4, 1.25), Places(rounding="tokens").count(10, 2, 4, 1.25)) == (7, 8)
    assert build().router.capacities(10, 2, 1.25) == [6] * 4


def crowd(count: int = T) -> Tensor:
    return torch.tensor([[4.0, 2.0, 0.0, 0.0]]).double().repeat(count, 1)


@pytest.mark.parametrize(("factor", "kept"), [(0.0, T), (1.0, 22), (0.5, 10), (-0.5, 10), (-9.0, T)])
def test_factor_0_drops_nothing_and_a_negative_one_caps(factor: float, kept: int) -> None:
    plan = route(crowd(), capacity_factor=factor).plan
    assert (plan.kept_A is None) == (factor == 0)
    kept_TK = torch.ones(T, 2, dtype=torch.bool) if plan.kept_A is None else plan.kept_A.view(T, 2)
    assert kept_TK.sum(0).tolist() == [kept, kept]
    assert capacity_rule(factor) == (None if factor == 0 else abs(factor))


def test_where_first_choices_fill_an_expert_every_second_choice_is_dropped() -> None:
    """Twenty-two places of expert 0, all for those who want it first."""
    logits_TN = torch.cat([torch.tensor([[2.0, 4.0, 0.0, 0.0]]).double().repeat(20, 1), crowd(22)])
    kept_TK = route(logits_TN).plan.kept_A.view(T, 2)
    assert kept_TK[20:, 0].all() and not kept_TK[:20, 1].any()


def test_batch_prioritised_routing_drops_the_least_sure_and_otherwise_the_last() -> None:
    logits_TN = crowd()
    logits_TN[:, 0] += torch.linspace(0, 2, T).double()[torch.randperm(T)]
    score_T = logits_TN.softmax(1).max(1).values
    plan = route(logits_TN, batch_prioritised=True).plan
    kept_T = plan.kept_A.view(T, 2)[:, 0]
    assert int(kept_T.sum()) == 22 and score_T[kept_T].min() > score_T[~kept_T].max()
    in_order_T = route(logits_TN).plan.kept_A.view(T, 2)[:, 0]
    assert torch.equal(in_order_T, torch.arange(T) < 22)


# -- gates ------------------------------------------------------------------------------------------------


def cosine(bias: bool = False) -> TemperedCosineGate:
    torch.manual_seed(5)
    return TemperedCosineGate(D, N, 16, bias=bias).double()


def test_the_cosine_gate_is_its_formula() -> None:
    gate = cosine(bias=True)
    torch.nn.init.normal_(gate.projection_bias)
    logits_TN = gate(tokens())
    for t in range(5):
        u = gate.projection @ tokens()[t] + gate.projection_bias
        for e in range(N):
            v = gate.embedding[e]
            expected = (u @ v) / (u.norm() * v.norm()) * math.exp(gate.tau.item())
            assert float(logits_TN[t, e].detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert gate.tau.item() == pytest.approx(math.log(2))
    assert 0.005 < TemperedCosineGate(D, 64, 256).embedding.std() < 0.015


def test_cosine_logits_do_not_know_the_length_of_x_and_are_bounded() -> None:
    gate = cosine()
    torch.testing.assert_close(gate(7.3 * tokens()), gate(tokens()))
    assert gate(tokens()).abs().max() <= 2 + 1e-12
    with torch.no_grad():
        gate.tau.fill_(50.0)
        gate.embedding[0] = gate.projection @ tokens()[0]
    assert float(gate(tokens())[0, 0].detach()) == pytest.approx(100.0)
    assert gate(tokens()).abs().max() <= 100 + 1e-9
    biased = cosine(bias=True)
    torch.nn.init.normal_(biased.projection_bias)
    assert (biased(7.3 * tokens()) - biased(tokens())).abs().max() > 1e-3


def test_the_temperature_is_learned_until_it_is_capped() -> None:
    layer = build(gate="cosine", capacity_factor=0.0)
    assert [p.requires_grad for p in layer.router.parameters()] == [True] * 4
    layer(tokens()[None]).square().sum().backward()
    assert layer.router.gate.tau.grad.abs() > 0
    layer.router.gate.tau.data.fill_(9.0)
    layer.router.gate.tau.grad = None
    layer(tokens()[None]).square().sum().backward()
    assert layer.router.gate.tau.grad == 0


def test_noise_has_the_size_of_one_over_N_and_losses_see_it() -> None:
    layer = build(num_experts=8, gate_noise=1.0, balance=0.01)
    routing = layer.router.route(tokens(), ctx())
    drawn_TN = (routing.logits_TN - tokens() @ layer.router.gate.weight.T).detach() * 8
    assert float(drawn_TN.std()) == pytest.approx(1, abs=0.15)
    torch.testing.assert_close(routing.scores_TN, routing.logits_TN.softmax(1))
    numerator, denominator = layer.losses[0].compute(routing, ctx())
    f_N = torch.bincount(routing.scores_TN.argmax(1), minlength=8) / T
    torch.testing.assert_close(numerator / denominator, 8 * (f_N * routing.scores_TN.mean(0)).sum())


def test_the_loss_of_load_and_importance_is_half_of_each_variation() -> None:
    layer = build(num_experts=8, gate_noise=1.0, loss="load_importance", balance=1.0)
    routing = layer.router.route(tokens(), ctx())
    clean_TN = (tokens() @ layer.router.gate.weight.T).detach()
    bar_T1 = routing.logits_TN.detach().topk(2).values[:, 1:]
    load_N = torch.from_numpy(norm.cdf(((clean_TN - bar_T1) * 8).numpy())).sum(0)
    total = sum((v.var() / v.mean() ** 2) / 2 for v in (clean_TN.softmax(1).sum(0), load_N))
    found = 0.0
    for loss in layer.losses[:2]:
        numerator, denominator = loss.compute(routing, ctx())
        found = found + loss.coefficient * numerator / denominator
    torch.testing.assert_close(found.detach(), total)
    with pytest.raises(ConfigError, match="loss='load_importance' needs gate_noise above 0"):
        build(loss="load_importance")


# -- the whole layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("postscore", [True, False])
@pytest.mark.parametrize("gate", ["linear", "cosine"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_encode_and_decode_equal_gshards_einsum_in_values_and_gradients(
    postscore: bool, gate: str, top_k: int
) -> None:
    options = {"gate": gate, "top_k": top_k, "postscore": postscore, "capacity_factor": 0.8}
    layer = build(batch_prioritised=True, **options)
    x_TD = tokens().requires_grad_()
    parameters = [x_TD, *layer.parameters()]
    score_TN = layer.router.gate(x_TD).softmax(1)
    top = score_TN.topk(top_k)
    gate_TK = top.values / top.values.sum(1, keepdim=True) if top_k > 1 else top.values
    slots = top_k * int(0.8 * math.ceil(T / N))
    count_N = torch.zeros(N, dtype=torch.long)
    where_TKNC = torch.zeros(T, top_k, N, slots, dtype=torch.double)
    order = score_TN.max(1).values.argsort(descending=True)
    for j in range(top_k):
        for t in order.tolist():
            e = int(top.indices[t, j])
            if count_N[e] < slots:
                where_TKNC[t, j, e, count_N[e]] = 1
            count_N[e] += 1
    assert count_N.max() > slots
    combine_TNC = torch.einsum("tk,tknc->tnc", gate_TK, where_TKNC)
    encode_TNC = where_TKNC.sum(1) if postscore else combine_TNC
    decode_TNC = combine_TNC if postscore else where_TKNC.sum(1)
    buffer_NCD = torch.einsum("tnc,td->ncd", encode_TNC, x_TD)
    experts = layer.experts
    h_NCH = torch.einsum("ncd,nhd->nch", buffer_NCD, experts.w_in)
    gated_NCH, up_NCH = h_NCH.chunk(2, dim=-1)
    out_NCD = torch.einsum("nch,ndh->ncd", torch.nn.functional.silu(gated_NCH) * up_NCH, experts.w_out)
    expected = torch.einsum("tnc,ncd->td", decode_TNC, out_NCD)
    y_TD = layer(x_TD[None])[0]
    torch.testing.assert_close(y_TD, expected)
    found, wanted = (torch.autograd.grad(y.square().sum(), parameters, allow_unused=True) for y in (y_TD, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_single_gate_is_left_as_it_is_and_several_are_divided_before_dropping() -> None:
    plan = route(crowd(), top_k=1).plan
    torch.testing.assert_close(plan.weight_A, crowd().softmax(1)[:, 0])
    plan = route(crowd()).plan
    torch.testing.assert_close(plan.weight_A.view(T, 2).sum(1), torch.ones(T, dtype=torch.double))
    assert not plan.kept_A.all(), "nobody's share grows by what was dropped"
    plain = route(crowd(), normalise_gate=False).plan
    torch.testing.assert_close(plain.weight_A.view(T, 2), crowd().softmax(1)[:, :2])
