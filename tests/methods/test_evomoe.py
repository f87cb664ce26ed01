"""EvoMoE (arXiv 2112.14397): one expert, then many, then a gate that goes from all of them to one."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers.evolution import Evolution, spawn
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFNExperts, UnionExperts, ZeroExperts
from libmoe.layers import MoELayer
from libmoe.routers.dense_to_sparse import DenseToSparseRouter
from libmoe.testing import check_method

N, D = 8, 16


def build(training: bool = True, **given: Any) -> MoELayer:
    given = {"dense": 0.0} | given
    layer = libmoe.create("evomoe", num_experts=N, **given).build_layer(Site(D, 24, seed=0, init_std=0.2))
    nn.init.normal_(layer.router.gate.weight, std=0.3)
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor, seed: int = 0) -> Routing:
    torch.manual_seed(seed)
    return layer.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training))


def mean_k(temperature: float, threshold: float = 0.001) -> float:
    layer = build(threshold=threshold)
    layer.router.temperature = temperature
    return route(layer, torch.randn(2000, D).double()).plan.experts_per_token().double().mean().item()


# -- phase 1 and the birth of experts ---------------------------------------------------------------------


def test_phase_1_is_a_dense_ffn_in_training_and_evaluation() -> None:
    for training in (True, False):
        layer, x_TD = build(training, dense=0.25), torch.randn(30, D).double()
        y_TD = layer.execute(x_TD, route(layer, x_TD))
        torch.testing.assert_close(y_TD, layer.experts.materialise(0)(x_TD))
    layer = build(dense=0.25, balance=1.0, z_loss=1.0)
    layer(torch.randn(2, 15, D).double()).square().sum().backward()
    assert (layer.router.gate.weight.grad == 0).all(), "nothing trains the gate yet"
    assert (layer.experts.w_in.grad[1:] == 0).all() and layer.experts.w_in.grad[0].abs().sum() > 0


def test_unchanged_copies_leave_the_loss_where_it_was() -> None:
    """Soft gates of weights that sum to 1: threshold 0 and the sampled probabilities themselves."""
    given = {"dense": 0.5, "threshold": 0.0, "weights": "gumbel", "diversity": 0.0, "num_experts": N}
    model = TinyLM("evomoe", **given).double()
    ids, losses = chain(40, 8, 16), []

    def look(info: Any) -> None:
        if info.step in (4, 5):
            with torch.no_grad():
                losses.append(model.loss(ids).item())
        if info.step == 5:
            (controller,) = model.method.build_controllers()
            controller.before_step(info)
            assert not bool(model.layer.router.single)
            with torch.no_grad():
                losses.append(model.loss(ids).item())

    drive(model, model.method, lambda step: model.loss(chain(40, 8, 16, seed=step)), 10, each=look, until=5)
    before, last, after = losses
    assert after == pytest.approx(last, rel=1e-12) and abs(before - last) > 1e-4


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_masked_experts_differ_pairwise_in_a_share_of_their_weights(rho: float) -> None:
    experts = FFNExperts(N, 40, 60, bias=True)
    before = {name: p.detach().clone() for name, p in experts.named_parameters()}
    spawn(experts, rho, "mask", seed=3)
    for name in ("w_in", "w_out"):
        weight = getattr(experts, name).detach()
        assert (((weight == before[name][0]) | (weight == 0)).all()), "kept as it was, or gone"
        assert (weight == 0).double().mean().item() == pytest.approx(rho, abs=0.01)
        pairs = [(weight[i] != weight[j]).double().mean().item() for i in range(N) for j in range(i)]
        assert min(pairs) == pytest.approx(2 * rho * (1 - rho), abs=0.03)
        assert max(pairs) == pytest.approx(2 * rho * (1 - rho), abs=0.03)
    assert torch.equal(experts.b_in, before["b_in"][:1].expand(N, -1))
    again = FFNExperts(N, 40, 60, bias=True)
    again.load_state_dict(before)
    spawn(again, rho, "mask", seed=3)
    assert torch.equal(again.w_in, experts.w_in)


def test_noise_is_of_a_size_relative_to_the_weights() -> None:
    experts = FFNExperts(N, 40, 60)
    first = experts.w_in[0].detach().clone()
    spawn(experts, 0.2, "noise", seed=3)
    change = experts.w_in.detach() - first
    assert (change.std() / first.std()).item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("moments", ["copy", "reset"])
def test_moments_of_the_optimiser_come_along_or_begin_anew(moments: str) -> None:
    experts = FFNExperts(4, 10, 12)
    optimizer = torch.optim.Adam(experts.parameters())
    for parameter in experts.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in experts.named_parameters()}
    spawn(experts, 0.3, "mask", seed=1, optimizer=optimizer, moments=moments)  # type: ignore[arg-type]
    for name, parameter in experts.named_parameters():
        found = optimizer.state[parameter]["exp_avg"]
        kept = (parameter.detach() != 0).to(found)
        expected = before[name][:1] * kept if moments == "copy" else torch.zeros_like(found)
        assert torch.equal(found, expected)
        assert optimizer.state[parameter]["step"] == 1


def test_experts_without_a_row_each_cannot_be_born() -> None:
    union = UnionExperts([FFNExperts(2, D, 8), ZeroExperts(1)])
    with pytest.raises(ConfigError, match="cannot spawn UnionExperts"):
        spawn(union)


# -- the gate ---------------------------------------------------------------------------------------------


def test_all_experts_run_at_a_high_temperature_and_one_at_a_low_one() -> None:
    counts = [mean_k(t) for t in (100.0, 1.0, 0.5, 0.3, 0.1, 0.01, 0.001)]
    assert counts[0] == N
    assert all(later < earlier for earlier, later in pairwise(counts))
    assert counts[-1] < 1.01


def test_sampled_probabilities_sum_to_1_and_their_largest_is_a_draw_from_the_softmax() -> None:
    from scipy.stats import chisquare

    layer, draws = build(weights="gumbel"), 20_000
    x_TD = torch.randn(1, D).double().expand(draws, -1)
    p_N = (x_TD[0] @ layer.router.gate.weight.T).softmax(0).detach()
    for temperature in (0.1, 1.0, 10.0):
        layer.router.temperature = temperature
        g_TN = route(layer, x_TD, seed=int(10 * temperature)).scores_TN.detach()
        torch.testing.assert_close(g_TN.sum(1), torch.ones(draws).double())
        count_N = torch.bincount(g_TN.argmax(1), minlength=N)
        assert chisquare(count_N.numpy(), (p_N * draws).numpy()).pvalue > 1e-3
        assert chisquare(count_N.numpy()).pvalue < 1e-12


@pytest.mark.parametrize("weights", ["softmax", "gumbel"])
def test_weights_are_those_of_the_softmax_or_those_that_were_drawn(weights: str) -> None:
    layer, x_TD = build(weights=weights, threshold=0.05), torch.randn(50, D).double()
    routing = route(layer, x_TD)
    torch.manual_seed(0)
    g_TN = layer.router.sampled(x_TD @ layer.router.gate.weight.T, ForwardContext().layer(0, (1, 50), True))
    p_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
    token_A, expert_A = (g_TN > 0.05).nonzero(as_tuple=True)
    assert torch.equal(routing.plan.token_A, token_A) and torch.equal(routing.plan.expert_A, expert_A)
    expected_TN = p_TN if weights == "softmax" else g_TN
    torch.testing.assert_close(routing.plan.weight_A, expected_TN[token_A, expert_A])


def test_what_is_below_the_threshold_does_not_run_and_does_not_learn() -> None:
    c = 0.06
    layer, x_TD = build(weights="gumbel", threshold=c), torch.randn(1, D).double()
    layer.router.temperature = 0.5
    routing = route(layer, x_TD)
    used = set(routing.plan.expert_A.tolist())
    assert 1 <= len(used) < N
    layer.execute(x_TD, routing).square().sum().backward()
    assert {e for e in range(N) if layer.experts.w_in.grad[e].abs().sum() > 0} == used
    many = route(layer, torch.randn(500, D).double())
    kept_T = torch.zeros(500).double().index_add(0, many.plan.token_A, many.plan.weight_A.detach())
    assert (kept_T >= 1 - N * c).all() and (kept_T <= 1 + 1e-9).all()


def test_the_last_phase_draws_one_expert_with_its_softmax_for_weight() -> None:
    layer, x_TD = build(), torch.randn(300, D).double()
    layer.router.hard = True
    first, second = (route(layer, x_TD, seed) for seed in (0, 1))
    assert (first.plan.experts_per_token() == 1).all() and not torch.equal(first.plan.expert_A, second.plan.expert_A)
    p_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
    torch.testing.assert_close(first.plan.weight_A, p_TN[torch.arange(300), first.plan.expert_A])


def test_evaluation_knows_no_temperature_and_draws_nothing() -> None:
    layer, x_TD = build(False), torch.randn(60, D).double()
    wanted = (x_TD @ layer.router.gate.weight.T).softmax(1)
    for temperature, hard, seed in ((1.0, False, 0), (0.01, True, 1), (100.0, False, 2)):
        layer.router.temperature, layer.router.hard = temperature, hard
        plan = route(layer, x_TD, seed).plan
        assert torch.equal(plan.expert_A, wanted.argmax(1))
        torch.testing.assert_close(plan.weight_A, wanted.max(1).values)
        assert plan.kept_A is None


def test_the_balance_loss_is_of_fractions_of_tokens_and_pulls_at_nothing_while_all_experts_run() -> None:
    x_TD = torch.randn(50, D).double()
    for temperature, pulls in ((1e6, False), (0.3, True)):
        layer = build(threshold=0.05)
        layer.router.temperature = temperature
        ctx = ForwardContext().layer(0, (1, 50), True)
        routing = layer.router.route(x_TD, ctx)
        numerator, tokens = layer.losses[0].compute(routing, ctx)
        p_TN = (x_TD @ layer.router.gate.weight.T).softmax(1)
        f_N = torch.bincount(routing.plan.expert_A, minlength=N) / 50
        torch.testing.assert_close(numerator / tokens, N * (p_TN.mean(0) * f_N).sum())
        numerator.backward()
        assert (layer.router.gate.weight.grad.abs().max().item() > 1e-9) == pulls


# -- the schedule -----------------------------------------------------------------------------------------


def test_temperature_falls_from_the_birth_of_experts_to_the_last_phase() -> None:
    linear = Evolution(0.25, 0.5, hot=2.0, cold=0.5, schedule="linear")
    exponential = Evolution(0.25, 0.5, hot=2.0, cold=0.5)
    assert [linear.temperature(s, 100) for s in (0, 25, 50, 75, 99)] == pytest.approx([2, 2, 1.25, 0.5, 0.5])
    assert [exponential.temperature(s, 100) for s in (0, 25, 50, 75, 99)] == pytest.approx([2, 2, 1, 0.5, 0.5])


def test_phases_follow_each_other_and_a_resumed_run_is_in_the_same() -> None:
    model = TinyLM("evomoe", num_experts=4, dense=0.2, soft=0.4, threshold=0.01)
    phases, k = [], []

    def note(ctx: Any, routing: Routing) -> None:
        k.append(routing.plan.experts_per_token().double().mean().item())

    with options(recorders=[note]):
        info = drive(
            model,
            model.method,
            lambda step: model.loss(chain(40, 4, 8, seed=step)),
            20,
            each=lambda info: phases.append(info.metrics["evolution/phase"]),
        )
    assert phases == [1.0] * 4 + [2.0] * 8 + [3.0] * 8
    assert k[:4] == [1.0] * 4 and min(k[4:12]) > 1.5 and k[12:] == [1.0] * 8
    other = TinyLM("evomoe", num_experts=4, dense=0.2, soft=0.4, threshold=0.01)
    other.load_state_dict(model.state_dict())
    before = copy.deepcopy(other.state_dict())
    (controller,) = other.method.build_controllers()
    info.model, info.step = other, 9
    controller.start(info)
    controller.before_step(info)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items()), "born once"
    assert other.layer.router.temperature == pytest.approx(controller.temperature(9, 20))


def test_experts_specialise_after_their_birth() -> None:
    """The loss of the trained model rises when experts are swapped for each other, which copies would not notice."""
    model = TinyLM("evomoe", num_experts=4, dense=0.2, soft=0.4)
    drive(model, model.method, lambda step: model.loss(chain(40, 8, 16, seed=step)), 80)
    weight = model.layer.experts.w_in.detach()
    assert all((weight[i] - weight[0]).norm() > 0.1 * weight[0].norm() for i in range(1, 4))


# -- its place --------------------------------------------------------------------------------------------


def test_experts_can_be_forbidden_and_their_number_limited() -> None:
    layer, x_TD = build(), torch.randn(40, D).double()
    with options(interventions=[BanExperts([3]), ForceTopK(2)]):
        ctx = ForwardContext().layer(0, (1, 40), True)
    plan = layer.route(x_TD, ctx).plan
    assert 3 not in plan.expert_A.tolist() and plan.experts_per_token().max() <= 2


@pytest.mark.parametrize("given", [{"dense": 0.0}, {"dense": 0.0, "weights": "gumbel", "top_k": 2}])
def test_the_gate_keeps_the_contract(given: dict[str, Any]) -> None:
    check_method("evomoe", given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.125}, "threshold=0.125 must be at least 0 and below 1 / num_experts = 0.125"),
        ({"dense": 0.7, "soft": 0.5}, "fractions of training"),
        ({"hot": 0.1}, "temperatures must fall"),
        ({"diversity": 1.0}, "diversity=1.0 must be at least 0, and below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("evomoe", **given).build_layer(Site(D, 24))
    assert math.isclose(DenseToSparseRouter(D, N).threshold, 0.001)
