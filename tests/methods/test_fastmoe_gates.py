"""The gates of FastMoE (arXiv 2103.13262): naive, noisy, GShard's, Switch's and swipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.losses import ImportanceLoss, LoadLoss
from libmoe.losses.variation import squared_variation
from libmoe.routers import DeepSpeedTop2Router, SwipeRouter, TopKRouter
from libmoe.routers.noise import LearnedNoise
from libmoe.testing import check_loss

N, D, T = 8, 6, 60


def build(method: str, training: bool = False, **options: Any) -> MoELayer:
    layer = libmoe.create(method, num_experts=N, **options).build_layer(Site(D, 12, init_std=0.5, seed=0))
    torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    if layer.router.gate.bias is not None:
        torch.nn.init.normal_(layer.router.gate.bias, generator=torch.Generator().manual_seed(3))
    return layer.double().train(training)


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def ctx(training: bool = False, count: int = T) -> Any:
    return ForwardContext().layer(0, (1, count), training)


def value(loss: Any, routing: Routing) -> Tensor:
    numerator, denominator = loss.compute(routing, ctx(True, routing.plan.num_tokens))
    return numerator / denominator


# -- the data path ----------------------------------------------------------------------------------------


def test_dispatch_equals_brute_force_with_slots_that_are_dropped_and_experts_without_tokens() -> None:
    experts = FFNExperts(N, D, 10, init_std=0.5).double()
    expert_TK = torch.randint(N - 2, (T, 3))  # two experts get nothing
    kept_TK = torch.rand(T, 3) < 0.7
    leaves = [torch.randn(T, D).double().requires_grad_(), torch.rand(T, 3).double().requires_grad_()]
    x_TD, score_TK = leaves
    found = experts.execute(x_TD, SparsePlan.from_topk(expert_TK, score_TK, N, kept_TK))
    repeated = [[experts.materialise(int(e))(x_TD[t]) for e in expert_TK[t]] for t in range(T)]
    y_TKD = torch.stack([torch.stack(row) for row in repeated])
    expected = ((score_TK * kept_TK).unsqueeze(1) @ y_TKD).squeeze(1)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


# -- naive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_naive_scores_sum_to_1_and_know_only_the_chosen_logits(top_k: int) -> None:
    layer = build("fastmoe", top_k=top_k)
    logits_TN = layer.router.gate(tokens()).detach().requires_grad_()
    torch.testing.assert_close(logits_TN, tokens() @ layer.router.gate.weight.T + layer.router.gate.bias)
    layer.router.gate = torch.nn.Identity()
    plan = layer.router.route(logits_TN, ctx()).plan
    weight_TK = plan.weight_A.view(T, top_k)
    top = logits_TN.topk(top_k)
    assert torch.equal(plan.expert_A.view(T, top_k), top.indices)
    torch.testing.assert_close(weight_TK, top.values.softmax(1))
    torch.testing.assert_close(weight_TK.sum(1), torch.ones(T, dtype=torch.double))
    shifted = layer.router.route(logits_TN + 3.7, ctx()).plan.weight_A
    torch.testing.assert_close(shifted, plan.weight_A)
    (grad_TN,) = torch.autograd.grad((weight_TK * torch.randn(T, top_k).double()).sum(), logits_TN)
    chosen_TN = torch.zeros(T, N, dtype=torch.bool).scatter(1, top.indices, True)
    assert (grad_TN[~chosen_TN] == 0).all() and (top_k == 1 or (grad_TN[chosen_TN] != 0).all())
    assert not any(loss.coefficient for loss in layer.losses)


# -- noisy ------------------------------------------------------------------------------------------------


def noisy(top_k: int = 2) -> tuple[MoELayer, Routing]:
    layer = build("noisy-top-k", training=True, top_k=top_k)
    torch.nn.init.normal_(layer.router.noise.weight, generator=torch.Generator().manual_seed(4))
    return layer, layer.router.route(tokens(), ctx(True))


def test_noise_has_the_learned_size_plus_a_hundredth_and_is_gone_in_evaluation() -> None:
    layer, routing = noisy()
    std_TN = torch.nn.functional.softplus(tokens() @ layer.router.noise.weight.T) + 0.01
    torch.testing.assert_close(routing.extras["noise_std_TN"], std_TN)
    clean_TN = tokens() @ layer.router.gate.weight.T
    torch.testing.assert_close(routing.extras["clean_TN"], clean_TN)
    drawn_TN = ((routing.logits_TN - clean_TN) / std_TN).detach()
    assert abs(float(drawn_TN.mean())) < 4 / math.sqrt(T * N) and float(drawn_TN.std()) == pytest.approx(1, abs=0.15)
    top = routing.logits_TN.topk(2)
    assert torch.equal(routing.plan.expert_A.view(T, 2), top.indices)
    torch.testing.assert_close(routing.plan.weight_A.view(T, 2), top.values.softmax(1))
    torch.testing.assert_close(layer.eval().router.route(tokens(), ctx()).logits_TN, clean_TN)


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_is_the_probability_to_be_among_the_k_if_one_noise_were_drawn_anew(top_k: int) -> None:
    """Monte Carlo: the noise of one expert is drawn again and again, that of the others stays."""
    layer, routing = noisy(top_k)
    p_TN = layer.losses[-1].mass(routing).detach()
    generator = torch.Generator().manual_seed(5)
    draws, clean_TN, std_TN = 20_000, routing.extras["clean_TN"], routing.extras["noise_std_TN"]
    for token, expert in ((0, 0), (1, 3), (2, 7), (3, int(routing.plan.expert_A[3 * top_k]))):
        logits_RN = routing.logits_TN[token].detach().repeat(draws, 1)
        anew_R = torch.randn(draws, generator=generator, dtype=torch.double) * std_TN[token, expert].detach()
        logits_RN[:, expert] = clean_TN[token, expert].detach() + anew_R
        among = int((logits_RN.topk(top_k).indices == expert).sum())
        p = float(p_TN[token, expert])
        assert binomtest(among, draws, min(max(p, 1e-12), 1 - 1e-12)).pvalue > 1e-4, (token, expert, p, among / draws)


def test_the_losses_are_squared_variations_of_gates_and_of_loads() -> None:
    layer, routing = noisy()
    importance_N, load_N = torch.zeros(N).double(), torch.zeros(N).double()
    top_TK = routing.logits_TN.topk(3).values
    for t in range(T):
        for e, w in zip(routing.plan.expert_A.view(T, 2)[t], routing.plan.weight_A.view(T, 2)[t], strict=True):
            importance_N[e] += w.detach()
        for e in range(N):
            bar = top_TK[t, 2] if routing.logits_TN[t, e] > top_TK[t, 2] else top_TK[t, 1]
            z = (routing.extras["clean_TN"][t, e] - bar) / routing.extras["noise_std_TN"][t, e]
            load_N[e] += norm.cdf(z.item())
    for loss, mass_N in zip(layer.losses[-2:], (importance_N, load_N), strict=True):
        assert loss.coefficient == 0.01
        torch.testing.assert_close(value(loss, routing).detach(), mass_N.var() / mass_N.mean() ** 2)


def test_importance_teaches_the_gate_and_load_the_noise_too() -> None:
    layer, routing = noisy()
    weights = [layer.router.gate.weight, layer.router.noise.weight]
    for loss in layer.losses[-2:]:
        grads = torch.autograd.grad(value(loss, routing), weights, retain_graph=True)
        assert all(g.abs().max() > 1e-6 for g in grads)
    layer.router.gate.weight.grad = None
    layer(tokens()[None]).sum().backward()
    assert layer.router.noise.weight.grad.abs().max() > 0


def test_with_all_experts_chosen_load_is_a_count_and_teaches_nothing() -> None:
    layer = build("noisy-top-k", training=True, top_k=N)
    found = value(layer.losses[-1], layer.router.route(tokens(), ctx(True)))
    assert found == 0 and not found.requires_grad


def test_even_use_costs_nothing_and_a_single_expert_N() -> None:
    assert squared_variation(torch.full((1, N), 3.0)).item() == 0
    assert squared_variation(torch.eye(N)[:1]).item() == pytest.approx(N)  # N - 1 below the variance
    assert squared_variation(torch.ones(2, 1)).tolist() == [0, 0]


def steady(k: int) -> Callable[[Tensor, Any], Routing]:
    """A router whose noise is a function of the token, so that a batch may be cut and padded without changing it."""
    torch.manual_seed(6)
    gate, offset = torch.randn(4, 16).double(), torch.randn(4, 16).double()

    def routing(x_TD: Tensor, context: Any) -> Routing:
        clean_TN, std_TN = x_TD @ gate.T, torch.nn.functional.softplus(x_TD @ offset.T)
        logits_TN = clean_TN + std_TN * torch.sin(5 * x_TD @ offset.T)
        expert_TK = logits_TN.topk(k).indices
        plan = SparsePlan.from_topk(expert_TK, logits_TN.gather(1, expert_TK).softmax(1), 4)
        extras = {"clean_TN": clean_TN, "noise_std_TN": std_TN}
        return Routing(plan, logits_TN, logits_TN.softmax(1), extras)

    return routing


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_the_contract_of_losses(scope: Any) -> None:
    for loss in (ImportanceLoss(0.1, scope), ImportanceLoss(0.1, scope, "scores"), LoadLoss(0.1, scope),
                 LoadLoss(0.1, scope, "kth")):  # fmt: skip
        check_loss(loss, steady(2), at_balance=0.0)
    with pytest.raises(ConfigError, match="'global_batch' is not counted"):
        LoadLoss(0.1, "global_batch")


# -- gshard -----------------------------------------------------------------------------------------------


def gshard(logits_TN: Tensor, training: bool = True, **options: Any) -> Routing:
    options = {"sample": "never", "draw_second": "train", "normalise": "chosen", "capacity_factor": None} | options
    n = logits_TN.shape[1]
    router = DeepSpeedTop2Router(n, n, gate=torch.nn.Identity(), **options).train(training)
    return router.route(logits_TN, ctx(training, len(logits_TN)))


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.5, 3.0])
def test_the_second_expert_is_kept_with_twice_its_weight(gap: float) -> None:
    draws = 20_000
    logits_TN = torch.tensor([[gap, 0.0, -9.0, -9.0]]).double().repeat(draws, 1)
    plan = gshard(logits_TN).plan
    second = 1 / (1 + math.exp(gap))
    torch.testing.assert_close(plan.weight_A.view(-1, 2)[0], torch.tensor([1 - second, second]).double())
    kept_TK = plan.kept_A.view(-1, 2)
    assert kept_TK[:, 0].all()
    assert binomtest(int(kept_TK[:, 1].sum()), draws, min(1.0, 2 * second)).pvalue > 1e-4
    assert gshard(logits_TN, training=False).plan.kept_A is None


def test_a_second_choice_that_is_left_out_asks_for_no_place() -> None:
    """Two places; tokens 0 and 1 want expert 0 first and hardly expert 1, which tokens 2 and 3 want second too."""
    rows = [[9.0, 0, -99, -99]] * 50 + [[-99, 0.0, 0.1, -99]] * 2
    plan = gshard(torch.tensor(rows).double(), capacity_factor=4 / (2 * 52) * 2).plan
    kept_TK = plan.kept_A.view(-1, 2)
    drawn = int(kept_TK[:50, 1].sum())
    assert plan.expert_A.view(-1, 2)[50:].tolist() == [[2, 1]] * 2
    assert drawn == 0 and kept_TK[50:, 1].all(), "2 g_2 = 0.0002 for the first fifty"


@pytest.mark.parametrize("normalise", ["chosen", "kept"])
def test_a_survivor_keeps_its_share_or_takes_all(normalise: Any) -> None:
    logits_TN = torch.tensor([[2.0, 1.0, -9.0, -9.0], [2.0, 1.0, -9.0, -9.0]]).double()
    plan = gshard(logits_TN, draw_second="never", capacity_factor=1.0, normalise=normalise).plan
    kept_TK, weight_TK = plan.kept_A.view(2, 2), plan.weight_A.view(2, 2)
    assert kept_TK.tolist() == [[True, True], [False, False]]
    share = math.e / (1 + math.e)
    torch.testing.assert_close(weight_TK[0], torch.tensor([share, 1 - share]).double())
    crowd = torch.tensor([[0.0, 3.0, -9.0, -9.0], [2.0, 1.0, -9.0, -9.0]]).double()
    plan = gshard(crowd, draw_second="never", capacity_factor=1.0, normalise=normalise).plan
    assert plan.kept_A.view(2, 2).tolist() == [[True, False], [True, False]]
    expected = 1.0 if normalise == "kept" else share
    assert float(plan.weight_A.view(2, 2)[1, 0]) == pytest.approx(expected)


def test_the_method_is_gshards_algorithm() -> None:
    layer = build("gshard", training=True)
    router = layer.router
    assert (router.draw_second, router.normalise, router.capacity_factor, router.sample) == (
        "train", "chosen", 1.2, "never",
    )  # fmt: skip
    p_TN = torch.softmax(tokens() @ router.gate.weight.T, 1)
    f_N = torch.bincount(p_TN.argmax(1), minlength=N) / T
    routing = router.route(tokens(), ctx(True))
    torch.testing.assert_close(value(layer.losses[0], routing), N * (f_N * p_TN.mean(0)).sum())
    with pytest.raises(ConfigError, match="top_k=3: this gate takes two experts"):
        libmoe.create("gshard", top_k=3)
    with pytest.raises(ConfigError, match="draw_second"):
        build("gshard", draw_second="sometimes")


# -- swipe ------------------------------------------------------------------------------------------------


def by_hand(logits_TN: Tensor, top_k: int) -> list[list[int]]:
    """Choice by choice, then step by step around, then token by token."""
    tokens, n = logits_TN.shape
    wanted, result = logits_TN.topk(top_k).indices.tolist(), [[] for _ in range(tokens)]
    for rank in range(top_k):
        free, waiting, found = [math.ceil(tokens / n)] * n, list(range(tokens)), {}
        for step in range(n):
            for token in list(waiting):
                e = (wanted[token][rank] + step) % n
                if free[e] and e not in result[token]:
                    free[e] -= 1
                    found[token] = e
                    waiting.remove(token)
        for token in waiting:
            around = [(wanted[token][rank] + step) % n for step in range(n)]
            found[token] = next(e for e in around if e not in result[token])
        for token, e in found.items():
            result[token].append(e)
    return result


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_swipe_moves_what_does_not_fit_to_the_next_expert_with_a_place(top_k: int) -> None:
    logits_TN = torch.randn(T, N, dtype=torch.double) + torch.linspace(0, 2, N)
    router = SwipeRouter(N, N, top_k, gate=torch.nn.Identity()).train()
    plan = router.route(logits_TN, ctx(True)).plan
    expert_TK = plan.expert_A.view(T, top_k)
    assert expert_TK.tolist() == by_hand(logits_TN, top_k)
    assert not torch.equal(expert_TK, logits_TN.topk(top_k).indices)
    assert all(len(set(row)) == top_k for row in expert_TK.tolist())
    torch.testing.assert_close(plan.weight_A.view(T, top_k), logits_TN.gather(1, expert_TK).softmax(1))
    assert torch.bincount(expert_TK[:, 0], minlength=N).max() <= math.ceil(T / N)


def test_a_single_choice_is_spread_perfectly_and_evaluation_gives_what_is_asked_for() -> None:
    logits_TN = torch.randn(64, N, dtype=torch.double) + torch.linspace(0, 4, N)
    router = SwipeRouter(N, N, 1, gate=torch.nn.Identity())
    load_N = router.train().route(logits_TN, ctx(True, 64)).plan.load_N()
    assert load_N.tolist() == [8.0] * N
    plain = router.eval().route(logits_TN, ctx(False, 64)).plan
    assert torch.equal(plain.expert_A, logits_TN.argmax(1)) and plain.load_N().max() > 20


def test_swipe_spares_padding_and_experts_that_are_banned() -> None:
    layer = build("swipe", training=True)
    x, mask = tokens()[None], torch.ones(1, T, dtype=torch.long)
    mask[0, 32:] = 0
    context = ForwardContext({"input_ids": torch.zeros(1, T, dtype=torch.long), "attention_mask": mask})
    plan = layer.router.route(x[0], context.layer(0, (1, T), True)).plan
    alone = layer.router.route(x[0, :32], ctx(True, 32)).plan
    assert torch.equal(plan.expert_A.view(T, 2)[:32], alone.expert_A.view(32, 2))
    seen: list[Tensor] = []
    with libmoe.options(
        interventions=[BanExperts([1, 5])], recorders=[lambda ctx, routing: seen.append(routing.plan.expert_A)]
    ):
        layer(x)
    assert set(seen[0].tolist()) == {0, 2, 3, 4, 6, 7}


def test_one_more_expert_than_choices_never_makes_a_token_use_one_twice() -> None:
    router = SwipeRouter(3, 3, 2, gate=torch.nn.Identity()).train()
    for seed in range(20):
        logits_TN = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
        expert_TK = router.route(logits_TN, ctx(True, 7)).plan.expert_A.view(7, 2)
        assert (expert_TK[:, 0] != expert_TK[:, 1]).all()


def test_learned_noise_has_no_floor_unless_asked_for() -> None:
    _, std_TN = LearnedNoise(D, N).double().draw(torch.zeros(T, N).double(), tokens(), ctx(True))
    torch.testing.assert_close(std_TN, torch.full((T, N), math.log(2)).double())
    router = TopKRouter(D, N, 2, noise=LearnedNoise(D, N))
    assert router.eval().route(tokens().float(), ctx()).extras == {}
