"""The gates of HetuMoE (arXiv 2203.14685): switch and mixture, and top-k with places for k choices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, GroupAlignmentLoss
from libmoe.routers import HierarchicalRouter, TopKRouter
from libmoe.routers.places import Places
from libmoe.testing import check_loss

N, G, E, D, T = 8, 2, 4, 6, 60


def ctx(tokens: int = T, training: bool = False) -> Any:
    return ForwardContext().layer(0, (1, tokens), training)


def route(logits_TN: Tensor, top_k: int = 2, groups: int = G) -> Routing:
    n = logits_TN.shape[1]
    router = HierarchicalRouter(n, n, top_k, groups=groups, gate=torch.nn.Identity()).eval()
    return router.route(logits_TN, ctx(len(logits_TN)))


def alignment(routing: Routing, groups: int = G) -> Tensor:
    numerator, denominator = GroupAlignmentLoss(1.0, groups).compute(routing, ctx(routing.plan.num_tokens))
    return numerator / denominator


def build(training: bool = False, **options: Any) -> MoELayer:
    layer = libmoe.create("sam", **options).build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_all_experts_of_a_token_are_the_best_of_its_most_probable_group(top_k: int) -> None:
    logits_TN = torch.randn(T, N, dtype=torch.double)
    plan = route(logits_TN, top_k).plan
    expert_TK, p_TN = plan.expert_A.view(T, -1), logits_TN.softmax(1)
    group_T = p_TN.view(T, G, E).sum(-1).argmax(1)
    assert torch.equal(expert_TK // E, group_T.unsqueeze(1).expand(-1, top_k))
    inside_TE = p_TN.view(T, G, E)[torch.arange(T), group_T]
    assert torch.equal(expert_TK % E, inside_TE.topk(top_k).indices)
    torch.testing.assert_close(plan.weight_A.view(T, -1), inside_TE.topk(top_k).values)
    if top_k == 1:
        best_T = p_TN.argmax(1)
        assert (expert_TK[:, 0] != best_T).any(), "the group of the best expert is not always the best group"


def test_the_alignment_loss_is_0_exactly_where_the_group_holds_the_best_k() -> None:
    logits_TN = torch.randn(400, N, dtype=torch.double)
    aligned = []
    for logits_N in logits_TN:
        routing = route(logits_N.unsqueeze(0))
        best = set(logits_N.topk(2).indices.tolist())
        aligned.append(best == set(routing.plan.expert_A.tolist()))
        assert (alignment(routing) == 0) == aligned[-1]
    assert 0.2 < sum(aligned) / len(aligned) < 0.8


def test_the_alignment_loss_is_the_excess_of_outer_experts_over_the_least_chosen_one() -> None:
    logits_TN = torch.randn(T, N, dtype=torch.double)
    routing = route(logits_TN)
    total = 0.0
    for p_N, expert_K in zip(logits_TN.softmax(1), routing.plan.expert_A.view(T, -1), strict=True):
        outside = [e for e in range(N) if e // E != int(expert_K[0]) // E]
        total += sum(max(0.0, float(p_N[e] - p_N[expert_K[1]])) for e in outside)
    assert float(alignment(routing)) == pytest.approx(total / T, rel=1e-12)
    check_loss(GroupAlignmentLoss(0.1, 2))


def test_its_gradient_pushes_outer_experts_above_the_threshold_down() -> None:
    logits_TN = torch.tensor([[2.0, 1.9, -1.0, -1.0, 2.2, -5.0, -5.0, -5.0]]).double().requires_grad_()
    routing = route(logits_TN)
    assert routing.plan.expert_A.tolist() == [0, 1]
    (grad_TN,) = torch.autograd.grad(alignment(routing), logits_TN)
    assert grad_TN[0, 4] > 0 and grad_TN[0, 1] < 0
    lower = logits_TN.detach().clone()
    lower[0, 4] = 1.8  # below the threshold: nothing to push
    assert alignment(route(lower)) == 0


def test_first_choices_are_never_displaced_by_second_ones_and_places_are_rounded_for_each_choice() -> None:
    assert Places(rounding="tokens").count(10, 2, 4, 1.0) == 6 and Places().count(10, 2, 4, 1.0) == 5
    places = Places(rounding="tokens")
    router = TopKRouter(N, N, 2, renormalise=False, capacity_factor=0.5, places=places, gate=torch.nn.Identity())
    plan = router.train().route(torch.randn(T, N), ctx(training=True)).plan
    slots = 2 * math.ceil(0.5 * T / N)
    expert_TK, kept_TK = plan.expert_A.view(T, 2), plan.kept_A.view(T, 2)
    assert not kept_TK.all()
    for expert in range(N):
        first_T, second_T = expert_TK[:, 0] == expert, expert_TK[:, 1] == expert
        assert int(kept_TK[expert_TK == expert].sum()) == min(slots, int(first_T.sum() + second_T.sum()))
        assert kept_TK[first_T, 0].sum() == min(slots, int(first_T.sum()))
        assert kept_TK[second_T, 1].sum() == min(max(0, slots - int(first_T.sum())), int(second_T.sum()))


def test_hetumoes_loss_for_k_choices_is_k_times_the_balance_loss() -> None:
    router = TopKRouter(N, N, 2, renormalise=False, gate=torch.nn.Identity())
    routing = router.route(torch.randn(T, N, dtype=torch.double), ctx())
    numerator, denominator = BalanceLoss(1.0, "micro_batch").compute(routing, ctx())
    p_N = routing.scores_TN.mean(0)
    choices = routing.plan.expert_A.view(T, 2)
    theirs = sum(N * (p_N * torch.bincount(choices[:, j], minlength=N) / T).sum() for j in range(2))
    torch.testing.assert_close(2 * numerator / denominator, theirs)


@pytest.mark.parametrize("top_k", [1, 2])
def test_equals_a_plain_reference_with_all_gradients_where_capacity_binds(top_k: int) -> None:
    layer = build(training=True, num_experts=N, top_k=top_k, capacity_factor=0.6)
    x_TD = torch.randn(T, D, dtype=torch.double, requires_grad=True)
    routing = layer.route(x_TD, ctx(training=True))
    assert not routing.plan.kept_A.all()
    y_TD = layer.execute(x_TD, routing)
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T, 1)
    group_T = p_TN.view(T, G, E).sum(-1).argmax(1)
    choices = [(p_TN.view(T, G, E)[t, g].topk(top_k).indices + g * E).tolist() for t, g in enumerate(group_T.tolist())]
    taken, rows = [0] * N, [torch.zeros(D, dtype=torch.double) for _ in range(T)]
    for rank in range(top_k):
        for token, experts in enumerate(choices):
            e = experts[rank]
            taken[e] += 1
            if taken[e] <= top_k * math.ceil(0.6 * T / N):
                rows[token] = rows[token] + p_TN[token, e] * layer.experts.materialise(e)(x_TD[token])
    expected = torch.stack(rows)
    torch.testing.assert_close(y_TD, expected)
    weight = layer.router.gate.weight
    found, wanted = (torch.autograd.grad(y.square().sum(), [x_TD, weight]) for y in (y_TD, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_group_that_has_too_few_experts_left_is_not_chosen() -> None:
    layer, x = build(num_experts=N), torch.randn(1, T, D, dtype=torch.double)
    seen: list[Tensor] = []
    record = [lambda ctx, routing: seen.append(routing.plan.expert_A)]
    with libmoe.options(interventions=[BanExperts([0, 1, 3])], recorders=record):
        layer(x)
    assert (seen[0] >= E).all()
    with libmoe.options(interventions=[ForceTopK(5)]), pytest.raises(ConfigError, match="top_k=5 experts of one group"):
        layer(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups=3 must divide num_experts=8"),
        ({"groups": 8, "top_k": 2}, "top_k=2 experts of one group"),
    ],
)
def test_groups_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(num_experts=N, **options)
