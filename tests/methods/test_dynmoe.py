"""Defining properties of DynMoE (arXiv 2405.14297): top-any gating and experts that come and go."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.controllers import AdaptiveExperts, StepInfo
from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import LayerLoad, StepStatistics
from libmoe.experts import FFN
from libmoe.layers import MoELayer
from libmoe.losses import DiversityLoss, FiringBalanceLoss, FiringShareLoss, Loss
from libmoe.methods import create
from libmoe.routers import TopAnyRouter
from libmoe.testing import check_loss

N, DIM, T = 6, 16, 400


def context(tokens: int = T, training: bool = True, **inputs: Tensor) -> LayerContext:
    return ForwardContext(inputs).layer(0, (1, tokens), training)


def make_router(**more: Any) -> TopAnyRouter:
    return TopAnyRouter(DIM, N, **more).double().train()


def make_layer(**more: Any) -> MoELayer:
    return create("dynmoe", {"num_experts": N, "expert_hidden": 8, **more}).build_layer(Site(DIM, 8)).double()


def fired(router: TopAnyRouter, x_TD: Tensor) -> Tensor:
    """bool ``[T, N]`` of the plan."""
    plan = router(x_TD, context(len(x_TD))).plan
    mask_TN = torch.zeros(len(x_TD), N, dtype=torch.bool)
    mask_TN[plan.token_A, plan.expert_A] = True
    return mask_TN


@pytest.fixture
def x_TD() -> Tensor:
    return torch.randn(T, DIM, dtype=torch.float64)


def test_at_first_an_expert_fires_when_its_cosine_is_positive(x_TD: Tensor) -> None:
    router = make_router()
    mask_TN = fired(router, x_TD)
    assert torch.equal(mask_TN, x_TD @ router.embedding.T > 0)
    assert mask_TN.sum(1).double().mean().item() == pytest.approx(N / 2, abs=0.15)
    eye = router.embedding @ router.embedding.T
    torch.testing.assert_close(eye, torch.eye(N, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_length_of_a_token_does_not_matter_and_experts_have_no_order(x_TD: Tensor) -> None:
    router = make_router(temperature=0.1)
    with torch.no_grad():
        router.threshold.uniform_(-0.3, 0.3)
    mask_TN = fired(router, x_TD)
    assert torch.equal(fired(router, x_TD * torch.rand(T, 1).double() * 50 + 0 * x_TD), mask_TN)
    order = torch.randperm(N)
    with torch.no_grad():
        router.embedding.copy_(router.embedding[order])
        router.threshold.copy_(router.threshold[order])
    assert torch.equal(fired(router, x_TD), mask_TN[:, order])


@pytest.mark.parametrize("training", [True, False])
def test_equal_experts_compute_the_dense_ffn_and_lone_tokens_get_nothing_in_training_only(
    x_TD: Tensor, training: bool
) -> None:
    layer, ffn = make_layer().train(training), FFN(DIM, 8, init_std=0.3).double()
    for expert in range(N):
        layer.experts.load_ffn(expert, ffn)
    lone_T = (x_TD @ layer.router.embedding.T <= 0).all(1)
    assert 0 < lone_T.sum() < T
    y_TD = layer(x_TD.unsqueeze(0))[0]
    expected_TD = ffn(x_TD)
    torch.testing.assert_close(y_TD[~lone_T], expected_TD[~lone_T])
    if training:
        assert torch.equal(y_TD[lone_T], torch.zeros_like(y_TD[lone_T]))
    else:
        torch.testing.assert_close(y_TD[lone_T], expected_TD[lone_T])
        plan = layer.router(x_TD, context(training=False)).plan
        assert (plan.experts_per_token() >= 1).all()
        best_T = (x_TD @ layer.router.embedding.T).argmax(1)
        assert all(best_T[t] == e for t, e in zip(plan.token_A, plan.expert_A, strict=True) if lone_T[t])


def test_scores_weigh_nothing(x_TD: Tensor) -> None:
    """The output is the plain mean of a token's experts."""
    layer = make_layer().train()
    mask_TN = fired(layer.router, x_TD)
    each_NTD = torch.stack([layer.experts.materialise(e)(x_TD) for e in range(N)])
    expected_TD = torch.einsum("tn,ntd->td", mask_TN.double(), each_NTD) / mask_TN.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(layer(x_TD.unsqueeze(0))[0], expected_TD)


def test_thresholds_learn_from_the_tokens_their_expert_took_and_embeddings_from_no_others(x_TD: Tensor) -> None:
    router = make_router()
    with torch.no_grad():
        router.threshold[4] = 0.99  # takes nobody
    mask_TN = fired(router, x_TD)
    leaf_TD = x_TD.clone().requires_grad_()
    plan = router(leaf_TD, context()).plan
    (plan.weight_A * torch.rand(len(plan.weight_A))).sum().backward()
    assert ((router.threshold.grad != 0) == mask_TN.any(0)).all() and not mask_TN[:, 4].any()
    assert router.embedding.grad[4].abs().max() == 0
    assert ((leaf_TD.grad.abs().sum(1) > 0) == mask_TN.any(1)).all()
    # One token alone: only the experts that fired for it move.
    router.zero_grad()
    plan = router(x_TD[:1], context(1)).plan
    plan.weight_A.sum().backward()
    assert ((router.embedding.grad.abs().sum(1) > 0) == mask_TN[0]).all()
    # As if the step were not there: the weight's derivative is that of (s - bar) / k.
    scale, k = 1.0, mask_TN[0].sum()
    bar_N = torch.sigmoid(router.threshold.detach() * scale)
    expected = torch.where(mask_TN[0], -bar_N * (1 - bar_N) * scale / k, 0.0)
    torch.testing.assert_close(router.threshold.grad, expected)


def test_a_higher_threshold_can_only_let_tokens_go(x_TD: Tensor) -> None:
    router = make_router()
    before = fired(router, x_TD)
    with torch.no_grad():
        router.threshold[1] += 0.2
    after = fired(router, x_TD)
    assert not (after & ~before).any() and after[:, 1].sum() < before[:, 1].sum()
    assert torch.equal(after[:, [0, 2, 3, 4, 5]], before[:, [0, 2, 3, 4, 5]])


def value(loss: Loss, routing: Routing) -> Tensor:
    numerator, denominator = loss.compute(routing, context(routing.plan.num_tokens))
    return numerator / denominator


def test_diversity_is_zero_where_active_embeddings_are_at_right_angles(x_TD: Tensor) -> None:
    router, loss = make_router(start=4), DiversityLoss(1.0)
    with torch.no_grad():
        router.embedding.copy_(torch.eye(N, DIM).double() * torch.arange(1, N + 1).unsqueeze(1))
        router.embedding[4:] = 1.0  # inactive: their angles do not count, their length does
    assert value(loss, router(x_TD, context())).item() == pytest.approx((1 + 2 + 3 + 4 + 4 + 4) / 6)
    with torch.no_grad():
        router.embedding[0] = torch.tensor([1.0, 1.0] + [0.0] * (DIM - 2))  # 45 degrees with one other
    two = value(loss, router(x_TD, context())).item() - (math.sqrt(2) + 2 + 3 + 4 + 4 + 4) / 6
    assert two == pytest.approx(math.sqrt(2 * 0.5))  # cos^2 = 1/2 on both sides of the diagonal
    paper = value(DiversityLoss(1.0, normalised=False), make_router()(x_TD, context()))
    assert paper.item() == pytest.approx(1.0, abs=1e-5)  # orthonormal rows of length 1


@pytest.mark.parametrize("normalised", [True, False])
def test_diversity_weighs_the_same_whatever_the_batch_and_has_finite_gradients(normalised: bool) -> None:
    router, loss = TopAnyRouter(16, 4).double(), DiversityLoss(0.1, normalised=normalised)
    check_loss(loss, router)
    with torch.no_grad():
        router.embedding.copy_(torch.eye(4, 16))
    value(loss, router(torch.randn(5, 16).double(), context(5))).backward()
    assert router.embedding.grad.isfinite().all()


def test_optional_losses_of_the_released_code(x_TD: Tensor) -> None:
    router = make_router(start=5)
    routing, mask_TN = router(x_TD, context()), fired(router, x_TD)
    share = value(FiringShareLoss(1.0), routing)
    assert share.item() == pytest.approx(mask_TN.double().mean().item())
    some_T = mask_TN.any(1)
    p_N = (mask_TN.double() / mask_TN.sum(1, keepdim=True).clamp_min(1))[some_T].mean(0)
    balance = value(FiringBalanceLoss(1.0, "micro_batch"), routing)
    assert balance.item() == pytest.approx((N * mask_TN.double().mean(0) * p_N).sum().item())
    for found in (share, balance):
        assert torch.autograd.grad(found, router.threshold, retain_graph=True)[0][:5].abs().min() > 0
    for scope in ("sequence", "micro_batch"):
        check_loss(FiringBalanceLoss(0.1, scope), TopAnyRouter(16, 4).double())
    with pytest.raises(ConfigError, match="scope 'rank' is not counted"):
        create("dynmoe", balance_scope="rank").build_layer(Site(DIM, 8))
    check_loss(FiringShareLoss(0.1), TopAnyRouter(16, 4).double())


# -- experts that come and go ----------------------------------------------------------------------------


def clusters(router: TopAnyRouter) -> Tensor:
    """Tokens around two directions: one that expert 0 takes, and one that no active expert takes."""
    taken = router.embedding[0].detach()
    lone = -router.embedding[: int(router.active_N.sum())].detach().sum(0)
    centre_TD = torch.where((torch.arange(60) % 3 == 0).unsqueeze(1), lone, taken)
    return centre_TD + 0.02 * torch.randn(60, DIM, dtype=torch.float64)


def watched(layer: MoELayer, controller: AdaptiveExperts, steps: int, x_TD: Tensor, **inputs: Tensor) -> StepInfo:
    info = StepInfo(layer)
    for step in range(steps):
        statistics = StepStatistics()
        with options(statistics=statistics), torch.no_grad():
            layer.route(x_TD, ForwardContext(inputs).layer(0, (1, len(x_TD)), True))
        info.step, info.loads, info.statistics = step + 1, statistics.reduced(), statistics
        controller.after_step(info)
    return info


def test_an_unused_expert_goes_and_a_new_one_takes_the_tokens_that_nobody_took() -> None:
    layer = make_layer(start_experts=3).train()
    router = layer.router
    x_TD = clusters(router)
    with torch.no_grad():
        router.threshold[1] = 0.999
    assert not fired(router, x_TD)[:, 1].any()
    lone_T = ~fired(router, x_TD).any(1)
    assert lone_T.sum() == 20 and fired(router, x_TD)[:, 0].sum() == 40
    parameter, weights = router.embedding, layer.experts.w_in.detach().clone()
    info = watched(layer, AdaptiveExperts(4, (0.5, 1.0)), 4, x_TD)
    assert info.metrics == {
        "adaptive_experts/removed": 1, "adaptive_experts/added": 1, "adaptive_experts/active": 3.0,
    }  # fmt: skip
    assert router.active_N.tolist() == [True, True, True, False, False, False]  # slot 1 was freed and taken again
    assert router.embedding is parameter and torch.equal(layer.experts.w_in, weights)
    direction_D = F.normalize(x_TD[lone_T].sum(0), dim=0)
    torch.testing.assert_close(router.embedding[1].detach(), direction_D, atol=1e-6, rtol=0)
    assert router.embedding[1].norm().item() == pytest.approx(1.0, abs=1e-6) and router.threshold[1] == 0
    after = fired(router, x_TD)
    assert (after[:, 1] == (x_TD @ direction_D > 0)).all()
    assert (~after.any(1)).sum() == 0 < lone_T.sum()


def test_without_lone_tokens_or_free_places_none_is_added_and_an_idle_layer_stays() -> None:
    router = make_router(start=N)
    some_N, none_D = torch.ones(N), torch.zeros(DIM)
    assert router.adapt(some_N, none_D) == (0, 0)
    assert router.adapt(some_N, torch.ones(DIM)) == (0, 0)  # full
    assert router.adapt(0 * some_N, none_D) == (0, 0) and router.active_N.all()  # nothing was seen
    assert router.adapt(0 * some_N, torch.ones(DIM)) == (N, 1)
    assert router.active_N.tolist() == [True] + [False] * 5


def test_padding_is_neither_counted_nor_added_up() -> None:
    layer = make_layer(start_experts=2).train()
    x_TD = clusters(layer.router)
    mask = (torch.arange(60) < 31).long().unsqueeze(0)
    controller = AdaptiveExperts(2, (0.0, 1.0))
    watched(layer, controller, 1, x_TD.masked_fill(mask[0].unsqueeze(1) == 0, float("nan")), attention_mask=mask)
    routed_N, unrouted_D = controller.seen[0]
    real = fired(layer.router, x_TD)[:31]
    assert routed_N.tolist() == real.sum(0).tolist()
    torch.testing.assert_close(unrouted_D, x_TD[:31][~real.any(1)].sum(0), atol=1e-4, rtol=0)


def test_the_released_schedule_watches_the_second_third_of_900_steps() -> None:
    controller = AdaptiveExperts()
    assert (controller.start_at, controller.stop_at, controller.period) == (300, 600, 900)
    layer = make_layer()
    seen = []
    for step in range(1, 1801):
        statistics = StepStatistics()
        statistics.add_sum(0, "unrouted", torch.zeros(DIM))
        load = {0: LayerLoad(torch.ones(N), torch.tensor(1.0))}
        info = StepInfo(layer, step=step, loads=load, statistics=statistics)
        controller.after_step(info)
        counted = controller.seen[0][0][0].item() if controller.seen else 0
        seen.append((counted, "adaptive_experts/added" in info.metrics))
    assert [i + 1 for i, (_, adapted) in enumerate(seen) if adapted] == [600, 1500]
    assert [i + 1 for i, (counted, _) in enumerate(seen) if counted == 1] == [301, 1201]
    assert max(counted for counted, _ in seen) == 299
    with pytest.raises(ConfigError, match="leaves none; lengthen adapt_every"):
        create("dynmoe", adapt_every=2, adapt_from=0.4, adapt_to=0.5)
    assert create("dynmoe", adapt_every=0).build_controllers() == []


def test_a_run_that_is_resumed_in_the_middle_adapts_alike() -> None:
    layer = make_layer(start_experts=2).train()
    controller = AdaptiveExperts(8, (0.0, 1.0))
    watched(layer, controller, 3, clusters(layer.router))
    state = json.loads(json.dumps(controller.state_dict()))
    other = AdaptiveExperts(8, (0.0, 1.0))
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(other.seen[0], controller.seen[0], strict=True))
    assert "router.active_N" in layer.state_dict()


# -- what training comes to ------------------------------------------------------------------------------


def train(name: str, seed: int, **more: Any) -> tuple[float, float, int]:
    """Loss and experts per token over the last of 300 steps, and active experts: 4 clusters, each with its own map."""
    torch.manual_seed(seed)
    method = create(name, {"expert_hidden": 16, **more})
    layer = method.build_layer(Site(DIM, 16, init_std=0.3)).train()
    generator = torch.Generator().manual_seed(seed)
    centre_CD = 6 * torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0][:4]
    map_CDD = torch.randn(4, DIM, DIM, generator=generator) / 4
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    info, controllers = StepInfo(layer, optimizer), method.build_controllers()
    losses, used = [], []
    for step in range(300):
        c_T = torch.randint(4, (128,), generator=generator)
        x_TD = centre_CD[c_T] + 0.5 * torch.randn(128, DIM, generator=generator)
        statistics = StepStatistics()
        with options(statistics=statistics):
            y_TD = layer(x_TD.unsqueeze(0))[0]
        loss = (y_TD - torch.einsum("td,tde->te", x_TD, map_CDD[c_T])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        info.step, info.loads, info.statistics = step + 1, statistics.reduced(), statistics
        for controller in controllers:
            controller.after_step(info)
        losses.append(loss.item())
        used.append(float(statistics.seen[0].count_N.sum()) / 128)
    active = getattr(layer.router, "active_N", torch.ones(layer.router.num_experts))
    return sum(losses[-30:]) / 30, sum(used[-30:]) / 30, int(active.sum())


DYNAMIC = {"num_experts": 16, "adapt_every": 15, "adapt_from": 0.0, "adapt_to": 1.0}


def test_from_one_and_from_eight_experts_training_comes_closer_and_beats_top_1() -> None:
    few, many = (train("dynmoe", 0, start_experts=start, **DYNAMIC) for start in (1, 8))
    assert 4 <= few[2] <= many[2] <= few[2] + 5  # 7 apart at first
    assert abs(few[1] - many[1]) < 0.8 and max(few[1], many[1]) < 2
    assert max(few[0], many[0]) < train("smoe", 0, num_experts=8, top_k=1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_sweep_it_is_at_least_as_good_as_the_mean_of_one(seed: int) -> None:
    grid = {
        (n, k): train("smoe", seed, num_experts=n, top_k=k)[0] for n in (2, 4, 8, 16) for k in (1, 2, 4) if k <= n
    }
    best_k = min(grid, key=lambda point: grid[point])[1]
    for start in (1, 8):
        loss, k, _ = train("dynmoe", seed, start_experts=start, **DYNAMIC)
        assert loss <= sum(grid.values()) / len(grid) and k <= best_k + 1


def test_inactive_experts_take_no_token_and_bad_sizes_are_refused(x_TD: Tensor) -> None:
    plan = make_router(start=2).eval()(x_TD, context(training=False)).plan
    assert isinstance(plan, SparsePlan) and plan.expert_A.max() <= 1
    assert (plan.experts_per_token() >= 1).all()
    with pytest.raises(ConfigError, match="start_experts=7 must be between 1 and num_experts=6"):
        make_router(start=7)
    with pytest.raises(ConfigError, match="temperature=0"):
        make_router(temperature=0.0)
    hot = TopAnyRouter(DIM, N, temperature=1e-6, learn_temperature=True)
    assert hot.logits(torch.randn(50, DIM), context(50)).abs().max() <= 100
