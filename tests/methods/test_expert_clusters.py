"""MoEC (arXiv 2207.09094): clusters of like experts and cluster-wise expert dropout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers.expert_dropout import ExpertDropout
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from libmoe.losses.clusters import ClusterLoss
from libmoe.routers import LinearGate, ReLURouter, SigmoidRouter, TopKRouter
from libmoe.routers.expert_dropout import DroppingGate, survivors
from libmoe.testing import check_loss

N, D, M = 8, 16, 2


def build(training: bool = True, alive: list[int] | None = None, **given: Any) -> MoELayer:
    layer = libmoe.create("expert-clusters", num_experts=N, clusters=M, **given).build_layer(
        Site(D, 24, seed=0, init_std=0.2)
    )
    if alive is not None:
        layer.router.gate.alive_N.copy_(torch.tensor([e in alive for e in range(N)]))
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor) -> Routing:
    return layer.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training))


def spread(mean_N: Tensor, variance: str, clusters: int = M, alive_N: Tensor | None = None) -> float:
    alive_N = torch.ones(len(mean_N), dtype=torch.bool) if alive_N is None else alive_N
    loss = ClusterLoss(1.0, variance=variance, clusters=clusters)  # type: ignore[arg-type]
    return loss.spread(mean_N[None, alive_N], alive_N).item()


def compute(loss: ClusterLoss, scores_TN: Tensor, expert_T: Tensor) -> Tensor:
    plan = SparsePlan.from_topk(expert_T[:, None], scores_TN.new_ones(len(scores_TN), 1), scores_TN.shape[1])
    ctx = ForwardContext().layer(0, (1, len(scores_TN)), True)
    numerator, tokens = loss.compute(Routing(plan, scores_TN.log(), scores_TN), ctx)
    return numerator / tokens


# -- the gate ---------------------------------------------------------------------------------------------


def test_the_gate_is_the_sigmoid_of_the_largest_cosine_over_a_learned_temperature() -> None:
    layer, x_TD = build(drop_rate=0.0), torch.randn(30, D).double()
    nn.init.constant_(layer.router.temperature, 0.11)
    gate = layer.router.gate.gate
    cosine_TN = nn.functional.cosine_similarity((x_TD @ gate.projection.T)[:, None], gate.embedding[None], dim=2)
    routing = route(layer, x_TD)
    assert gate.projection.shape == (32, D)
    assert torch.equal(routing.plan.expert_A, cosine_TN.argmax(1))
    torch.testing.assert_close(routing.plan.weight_A, (cosine_TN.max(1).values / 0.11).sigmoid())
    torch.testing.assert_close(routing.scores_TN, (cosine_TN / 0.07).softmax(1))
    layer.execute(x_TD, routing).sum().backward()
    assert layer.router.temperature.grad.abs().item() > 0


def test_a_cold_gate_still_takes_the_largest_cosine() -> None:
    """All sigmoids are 1 then, and tell nothing."""
    layer, x_TD = build(drop_rate=0.0).float(), torch.randn(200, D)
    wanted = route(layer, x_TD).plan.expert_A
    nn.init.constant_(layer.router.temperature, 0.0)  # the floor is 1e-4
    routing = route(layer, x_TD)
    assert torch.equal(routing.plan.expert_A, wanted)
    assert (routing.plan.weight_A == 1).float().mean() > 0.5


def test_tokens_beyond_capacity_come_out_exactly_as_they_went_in() -> None:
    layer, x_TD = build(capacity_factor=0.5), torch.randn(40, D).double()
    routing = route(layer, x_TD)
    y_TD, kept_T = x_TD + layer.execute(x_TD, routing), routing.plan.kept_A
    assert 0 < int(kept_T.sum()) < 40
    assert torch.equal(y_TD[~kept_T], x_TD[~kept_T]) and (y_TD[kept_T] != x_TD[kept_T]).any(1).all()


# -- the loss ---------------------------------------------------------------------------------------------


def test_experts_alike_within_clusters_cost_nothing_however_the_clusters_differ() -> None:
    mean_N = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05]).double()
    assert spread(mean_N, "intra") == pytest.approx(0, abs=1e-15)
    assert spread(mean_N, "all") == pytest.approx(mean_N.var().item())
    uneven_N = mean_N + torch.tensor([0.03, -0.03, 0, 0, 0.01, -0.01, 0, 0]).double()
    expected = (uneven_N[:4].var() + uneven_N[4:].var()) / 2
    assert spread(uneven_N, "intra") == pytest.approx(expected.item())


def test_a_wider_gap_between_the_first_two_clusters_costs_less() -> None:
    inner_N = torch.tensor([0.02, -0.02, 0.01, -0.01]).double().repeat(2)
    values, same = [], []
    for gap in (0.0, 0.05, 0.1):
        mean_N = inner_N + 0.125 + torch.tensor([gap / 2] * 4 + [-gap / 2] * 4).double()
        values.append(spread(mean_N, "intra-over-inter"))
        same.append(spread(mean_N, "intra"))
    assert same == pytest.approx([same[0]] * 3) and values[0] == pytest.approx(same[0])
    assert values == pytest.approx([same[0] * math.exp(-gap) for gap in (0.0, 0.05, 0.1)])
    third_N = torch.tensor([0.3, 0.2, 0.2, 0.1, 0.02, 0.0, 0.1, 0.08]).double()  # clusters of two: 0.25, 0.15, ...
    within = spread(third_N, "intra", clusters=4)
    assert spread(third_N, "intra-over-inter", clusters=4) == pytest.approx(within * math.exp(-0.1))


def test_the_loss_is_balance_plus_variance_of_sums_or_of_means() -> None:
    scores_TN, expert_T = torch.randn(30, N).double().softmax(1), torch.randint(N, (30,))
    f_N, sum_N = torch.bincount(expert_T, minlength=N) / 30, scores_TN.sum(0)
    for scale, probability_N, per in (("sum", sum_N, 30), ("mean", sum_N / 30, 1)):
        within = (probability_N[:4].var() + probability_N[4:].var()) / 2
        expected = N * ((f_N * probability_N).sum() + 0.7 * within) / per
        loss = ClusterLoss(1.0, clusters=M, weight=0.7, scale=scale)  # type: ignore[arg-type]
        torch.testing.assert_close(compute(loss, scores_TN, expert_T), expected)
    plain = compute(ClusterLoss(1.0, clusters=M, weight=0.0), scores_TN, expert_T)
    torch.testing.assert_close(plain, N * (f_N * sum_N / 30).sum())


def test_experts_that_nobody_chose_are_moved_and_frequencies_have_no_gradient() -> None:
    logits_TN = torch.randn(20, N, dtype=torch.double, requires_grad=True)
    expert_T = torch.randint(4, (20,))  # nobody in the second cluster
    value = compute(ClusterLoss(1.0, clusters=M), logits_TN.softmax(1), expert_T)
    plain = compute(ClusterLoss(1.0, clusters=M, weight=0.0), logits_TN.softmax(1), expert_T)
    spread_TN, plain_TN = (torch.autograd.grad(v, logits_TN, retain_graph=True)[0] for v in (value, plain))
    assert (spread_TN - plain_TN)[:, 4:].abs().min() > 0
    p_TN = logits_TN.detach().softmax(1)
    f_N = torch.bincount(expert_T, minlength=N).double() / 20
    torch.testing.assert_close(plain_TN, N / 20 * p_TN * (f_N - p_TN @ f_N[:, None]))


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
@pytest.mark.parametrize("variance", ["all", "intra", "intra-over-inter"])
def test_the_loss_keeps_the_contract(scope: str, variance: str) -> None:
    for scale in ("sum", "mean"):
        loss = ClusterLoss(1.0, scope, variance=variance, clusters=2, scale=scale)  # type: ignore[arg-type]
        check_loss(loss, at_balance=1.0)


# -- expert dropout ---------------------------------------------------------------------------------------


def test_a_dropped_expert_has_no_probability_no_token_and_no_gradient() -> None:
    alive = [0, 2, 4, 6]
    gone = [1, 3, 5, 7]
    layer, x_TD = build(alive=alive, capacity_factor=None), torch.randn(60, D).double()
    ctx = ForwardContext().layer(0, (1, 60), True)
    routing = layer.route(x_TD, ctx)
    assert (routing.scores_TN[:, gone] == 0).all() and set(routing.plan.expert_A.tolist()) <= set(alive)
    torch.testing.assert_close(routing.scores_TN.sum(1), torch.ones(60).double())
    numerator, tokens = layer.losses[0].compute(routing, ctx)
    (layer.execute(x_TD, routing).square().sum() + numerator / tokens).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert (layer.experts.w_in.grad[gone] == 0).all() and (layer.router.gate.gate.embedding.grad[gone] == 0).all()
    assert (layer.router.gate.gate.embedding.grad[alive] != 0).all()
    wanted = route(build(False), x_TD).plan.expert_A
    stays = torch.isin(wanted, torch.tensor(alive))
    assert torch.equal(routing.plan.expert_A[stays], wanted[stays]), "whose expert is left keeps it"


def test_the_loss_is_that_of_the_experts_that_are_left() -> None:
    alive = [0, 2, 5, 7]
    layer, x_TD = build(alive=alive, capacity_factor=None), torch.randn(60, D).double()
    ctx = ForwardContext().layer(0, (1, 60), True)
    routing = layer.route(x_TD, ctx)
    numerator, tokens = layer.losses[0].compute(routing, ctx)
    number = {expert: place for place, expert in enumerate(alive)}
    expert_T = torch.tensor([number[e] for e in routing.plan.expert_A.tolist()])
    expected = compute(ClusterLoss(1.0, clusters=M), routing.scores_TN[:, alive], expert_T)
    torch.testing.assert_close(numerator / tokens, expected)


def test_unequal_clusters_of_survivors_fall_back_on_the_plain_variance() -> None:
    alive_N = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    mean_N = torch.rand(N).double()
    assert spread(mean_N, "intra", alive_N=alive_N) == pytest.approx(mean_N[alive_N].var().item())


@pytest.mark.parametrize(("rate", "left"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.6, 1), (0.75, 1)])
def test_every_cluster_keeps_as_many_the_same_places_and_for_as_long(rate: float, left: int) -> None:
    dropout = ExpertDropout(rate, clusters=M, interval=10)
    masks = [dropout.draw(N, layer=0, step=step).view(M, -1) for step in range(40)]
    assert all((mask.sum(1) == left).all() and torch.equal(mask[0], mask[1]) for mask in masks)
    assert all(torch.equal(masks[step], masks[step // 10 * 10]) for step in range(40))
    if rate > 0:
        draws = {tuple(dropout.draw(N, layer, 10 * i).tolist()) for i in range(8) for layer in range(2)}
        assert len(draws) > 1, "intervals and layers draw for themselves"


def test_training_drops_evaluation_does_not_and_the_end_brings_all_back() -> None:
    model = TinyLM("expert-clusters", num_experts=N, clusters=M, drop_interval=4, capacity_factor=None)
    seen: list[tuple[list[bool], set[int]]] = []
    share: list[float] = []

    def look(info: Any) -> None:
        share.append(info.metrics["expert_dropout/alive"])

    def loss(step: int) -> Tensor:
        used: list[Tensor] = []
        with options(recorders=[lambda ctx, routing: used.append(routing.plan.expert_A)]):
            value = model.loss(chain(40, 8, 16, seed=step))
        seen.append((model.layer.router.gate.alive_N.tolist(), set(used[0].tolist())))
        return value

    info = drive(model, model.method, loss, 12, each=look)
    assert share == [0.5] * 12
    assert all(used <= {e for e in range(N) if alive[e]} for alive, used in seen)
    assert all(seen[step][0] == seen[step // 4 * 4][0] for step in range(12))
    model.eval()
    chosen: list[Tensor] = []
    with options(recorders=[lambda ctx, routing: chosen.append(routing.plan.expert_A)]):
        model(chain(40, 30, 16))
    assert len(set(chosen[0].tolist())) > 4
    for controller in model.method.build_controllers():
        controller.finish(info)
    assert model.layer.router.gate.alive_N.all()


def test_a_resumed_run_drops_the_same() -> None:
    first = TinyLM("expert-clusters", num_experts=N, clusters=M, drop_interval=3)
    again = TinyLM("expert-clusters", num_experts=N, clusters=M, drop_interval=3)
    info = drive(first, first.method, lambda s: first.loss(chain(40, 2, 4, seed=s)), 10, until=8)
    (controller,) = again.method.build_controllers()
    info.model = again
    controller.start(info)
    info.step = 7
    controller.before_step(info)
    assert torch.equal(again.layer.router.gate.alive_N, first.layer.router.gate.alive_N)


@pytest.mark.parametrize("kind", [TopKRouter, SigmoidRouter, ReLURouter])
def test_any_router_with_a_gate_can_lose_experts(kind: Any) -> None:
    router = kind(D, N, 2, gate=DroppingGate(LinearGate(D, N, init_std=1.0), N)).double().train()
    router.gate.alive_N[[1, 6]] = False
    ctx = ForwardContext().layer(0, (1, 50), True)
    routing = router(torch.randn(50, D).double(), ctx)
    assert not {1, 6} & set(routing.plan.expert_A.tolist())
    routing.plan.weight_A.sum().backward()
    assert router.gate.gate.weight.grad.isfinite().all() and (router.gate.gate.weight.grad[[1, 6]] == 0).all()
    numerator, _ = BalanceLoss(1.0).compute(routing, ctx)
    assert numerator.isfinite()


def siblings(seed: int, weight: float) -> float:
    """How often a token's second expert is of the cluster of its first, after training."""
    torch.manual_seed(seed)
    given = {"variance": "intra-over-inter", "variance_weight": weight, "balance": 0.1, "drop_interval": 20}
    model = TinyLM("expert-clusters", num_experts=N, clusters=M, capacity_factor=None, **given)
    nn.init.normal_(model.layer.router.gate.gate.projection, std=0.25)
    drive(model, model.method, lambda step: model.loss(chain(40, 8, 24, seed=step + 1000 * seed, of=seed)), 160)
    logits: list[Tensor] = []
    with torch.no_grad(), options(recorders=[lambda ctx, routing: logits.append(routing.logits_TN)]):
        model.eval()(chain(40, 32, 24, seed=999 + seed, of=seed))
    cluster_T2 = logits[0].topk(2).indices // (N // M)
    return (cluster_T2[:, 0] == cluster_T2[:, 1]).double().mean().item()


def test_tokens_whose_expert_is_gone_find_a_sibling_more_often_than_under_plain_balance() -> None:
    """Measured over 8 seeds: 0.68 with the variance over the gap, 0.56 with the variance, 0.41 without; chance 0.43."""
    with_loss, without = ([siblings(seed, weight) for seed in range(2)] for weight in (1.0, 0.0))
    assert sum(with_loss) > sum(without) + 0.1 * 2, (with_loss, without)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clusters": 3}, "clusters=3 must divide num_experts=8"),
        ({"drop_rate": 1.0}, "drop_rate=1.0 must be at least 0 and below 1"),
        ({"drop_rate": 0.8}, "leaves no expert of 4"),
        ({"drop_rate": 0.7, "top_k": 3}, "leaves 2 experts, fewer than top_k=3"),
        ({"balance_scope": "global_batch"}, "is not counted by this loss"),
        ({"sublayers": 0}, "sublayers=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("expert-clusters", num_experts=N, **given).build_layer(Site(D, 24))
    assert survivors(64, 8, 0.5) == 4
