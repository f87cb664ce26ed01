"""LocMoE (arXiv 2401.13920): fixed pooling as router, the locality loss, and the bound on capacity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.special import erfc
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses.locality import LocalityLoss
from libmoe.routers.capacity_bound import capacity_exponential_bound, capacity_lower_bound, routed_cosine
from libmoe.routers.pooled import PooledRouter, PoolingGate
from libmoe.stats.sphere import cap_probability
from libmoe.testing import check_loss, check_method
from two_ranks import in_two_ranks

N, D = 8, 32


def build(training: bool = False, **given: Any) -> MoELayer:
    return libmoe.create("locmoe", num_experts=N, **given).build_layer(Site(D, 24, seed=0)).double().train(training)


def context(tokens: int, node_B: Tensor | None = None, batch: int = 1) -> LayerContext:
    with options(side={} if node_B is None else {"node": node_B}):
        return ForwardContext().layer(0, (batch, tokens // batch), True)


def routing_of(scores_TN: Tensor) -> Routing:
    plan = SparsePlan.from_topk(scores_TN.topk(1).indices, torch.ones(len(scores_TN), 1), scores_TN.shape[1])
    return Routing(plan, None, scores_TN)


# -- the router -------------------------------------------------------------------------------------------


def test_the_gate_is_a_linear_map_with_fixed_orthogonal_blocks_and_no_parameters() -> None:
    gate, x_TD = PoolingGate(D, N), torch.randn(50, D, dtype=torch.double)
    weight_ND = gate.weights().double()
    torch.testing.assert_close(gate(x_TD), x_TD @ weight_ND.T)
    gram_NN = weight_ND @ weight_ND.T
    torch.testing.assert_close(gram_NN, torch.eye(N, dtype=torch.double) * N / D)
    assert not list(gate.parameters()) and not list(build().router.parameters())
    by_hand = [sum(x_TD[3, i * 4 : i * 4 + 4].tolist()) / 4 for i in range(N)]
    assert gate(x_TD)[3].tolist() == pytest.approx(by_hand)


def test_adding_a_constant_to_all_features_changes_no_choice() -> None:
    router, x_TD = build().router, torch.randn(200, D, dtype=torch.double)
    chosen, shifted = (router.route(x, context(200)).plan.expert_A for x in (x_TD, x_TD - 5.0))
    assert torch.equal(chosen, shifted), "although all means are negative then, and equal after the ReLU"
    scores_TN = router.route(x_TD - 50.0, context(200)).scores_TN
    torch.testing.assert_close(scores_TN, torch.full_like(scores_TN, 1 / N))


def test_normal_tokens_are_spread_evenly_without_any_training() -> None:
    share_N = torch.bincount(PooledRouter(D, N).route(torch.randn(40_000, D), context(40_000)).plan.expert_A) / 40_000
    assert float((share_N - 1 / N).abs().max()) < 5 * math.sqrt(1 / N / 40_000)


def test_the_weight_is_the_softmax_of_the_relu_of_the_chosen() -> None:
    layer, x_TD = build(scale=3.0), torch.randn(50, D, dtype=torch.double)
    routing = layer.route(x_TD, context(50))
    z_TN = 3.0 * x_TD.view(50, N, -1).mean(-1)
    expert_T = z_TN.argmax(1)
    assert torch.equal(routing.plan.expert_A, expert_T)
    weight_T = z_TN.relu().softmax(1)[torch.arange(50), expert_T]
    torch.testing.assert_close(routing.plan.weight_A, weight_T)
    expected = torch.stack([w * layer.experts.materialise(int(e))(x) for w, e, x in zip(weight_T, expert_T, x_TD)])
    torch.testing.assert_close(layer.execute(x_TD, routing), expected)


def test_as_published_the_weights_of_normalised_tokens_are_near_1_over_n() -> None:
    x_TD = torch.randn(2000, 1024)
    published, scaled = (PooledRouter(1024, 16, scale=s).route(x_TD, context(2000)).plan.weight_A for s in (1.0, 8.0))
    assert float(published.mean()) == pytest.approx(1 / 16, rel=0.25) and float(scaled.mean()) > 3 / 16


def test_the_backbone_learns_where_to_send_a_token() -> None:
    layer, x = build(True), torch.randn(1, 20, D, dtype=torch.double, requires_grad=True)
    layer.route(x[0], context(20)).plan.weight_A.sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_the_number_of_experts_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_experts=5 must divide the width 32 to pool it; 4 does"):
        PooledRouter(32, 5)


# -- the locality loss ------------------------------------------------------------------------------------


def value(loss: LocalityLoss, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
    numerator, tokens = loss.compute(routing_of(scores_TN), ctx)
    return numerator / tokens


def test_it_is_0_if_and_only_if_the_node_uses_its_experts_alone() -> None:
    loss = LocalityLoss(1.0, nodes=2, smoothing=0.01)
    local_N = torch.tensor([0.99 / 4] * 4 + [0.01 / 4] * 4)
    torch.testing.assert_close(loss.localised(N)[0], local_N)
    assert float(value(loss, local_N.expand(10, N), context(10))) == pytest.approx(0, abs=1e-6)
    for other_N in (torch.full((N,), 1 / N), local_N.flip(0), torch.eye(N)[0]):
        assert float(value(loss, other_N.expand(10, N), context(10))) > 0.1
    mixed = torch.eye(N)[:4].repeat(3, 1) * 0.99 + 0.01 * torch.eye(N)[4:].repeat(3, 1)
    assert float(value(loss, mixed, context(12))) == pytest.approx(0, abs=1e-6), "only the mean counts"


def test_the_value_is_the_divergence_of_each_node_weighted_by_its_tokens() -> None:
    scores_TN = torch.randn(30, N, dtype=torch.double).softmax(-1)
    node_B = torch.tensor([0, 2, 2, 1, 0])
    loss, expected = LocalityLoss(1.0, nodes=3, smoothing=0.1, home="side"), 0.0
    parts = [range(2), range(2, 5), range(5, 8)]
    for node in range(3):
        rows = torch.cat([scores_TN[6 * b : 6 * b + 6] for b in range(5) if node_B[b] == node])
        for e in range(N):
            current, own = float(rows[:, e].mean()), parts[node]
            local = 0.9 / len(own) if e in own else 0.1 / (N - len(own))
            expected += len(rows) / 30 * current * math.log(current / local)
    assert float(value(loss, scores_TN, context(30, node_B, batch=5))) == pytest.approx(expected)


def test_with_all_experts_on_one_node_uniform_use_costs_nothing() -> None:
    assert float(value(LocalityLoss(1.0), torch.full((10, N), 1 / N), context(10))) == pytest.approx(0, abs=1e-6)


def test_a_step_on_it_alone_sends_more_tokens_to_the_own_node() -> None:
    loss, node_B = LocalityLoss(1.0, nodes=2, home="side"), torch.tensor([0, 1])
    x_TD = torch.randn(200, D, dtype=torch.double)
    mixer = torch.eye(D, dtype=torch.double).repeat(2, 1, 1).requires_grad_()  # one for each node's data
    router, fractions = PooledRouter(D, N, scale=2.0), []
    for _ in range(30):
        y_TD = torch.einsum("bld,bde->ble", x_TD.view(2, 100, D), mixer).flatten(0, 1)
        ctx = context(200, node_B, batch=2)
        routing = router.route(y_TD, ctx)
        local_T = routing.plan.expert_A.view(2, 100) // 4 == node_B[:, None]
        fractions.append(float(local_T.double().mean()))
        numerator, tokens = loss.compute(routing, ctx)
        (grad,) = torch.autograd.grad(numerator / tokens, mixer)
        mixer = (mixer - 5.0 * grad).detach().requires_grad_()
    assert fractions[0] == pytest.approx(0.5, abs=0.1)
    assert fractions[1] > fractions[0] and fractions[-1] > 0.8


def rank_value(rank: int, folder: Path) -> None:
    assert dist.get_world_size() == 2
    local_N = torch.tensor([0.99 / 4] * 4 + [0.01 / 4] * 4)
    found = value(LocalityLoss(1.0, nodes=2), local_N.expand(4, N), context(4))
    (folder / f"{rank}.txt").write_text(repr(float(found)))


def test_every_rank_has_a_node_of_its_own(tmp_path: Path) -> None:
    in_two_ranks(rank_value, tmp_path)
    first, second = (float((tmp_path / f"{rank}.txt").read_text()) for rank in range(2))
    assert first == pytest.approx(0, abs=1e-6)
    assert second == pytest.approx(0.98 * math.log(99), rel=1e-4)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
@pytest.mark.parametrize("home", ["rank", "side"])
def test_it_keeps_the_contract(scope: Any, home: Any) -> None:
    check_loss(LocalityLoss(0.1, scope, nodes=2, home=home), side=lambda batch: {"node": torch.arange(batch) % 2})


def test_places_that_there_are_not_are_refused() -> None:
    for given, match in (
        ({"nodes": 0}, "nodes=0 must be at least 1"),
        ({"nodes": 9}, "nodes=9 exceeds the number of experts, 8"),
        ({"smoothing": 0.0}, "smoothing=0.0 must be between 0 and 1"),
        ({"home": "here"}, "'here' is not allowed; choose one of 'rank', 'side'"),
    ):
        with pytest.raises(ConfigError, match=match):
            libmoe.create("locmoe", given)
    with pytest.raises(ConfigError, match=r"side input 'node' must be in 0\.\.1"):
        value(LocalityLoss(1.0, nodes=2, home="side"), torch.full((4, N), 1 / N), context(4, torch.tensor([2])))


# -- the bound on capacity --------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("cosine", [0.03, 0.1, 0.15])
def test_the_probability_of_a_cap_is_that_of_random_directions(dim: int, cosine: float) -> None:
    x = np.random.default_rng(0).standard_normal((100_000, dim)).astype(np.float32)
    counted = (np.abs(x[:, 0]) / np.linalg.norm(x, axis=1) >= cosine).mean()
    assert cap_probability(cosine, dim) == pytest.approx(counted, rel=0.05)


def test_the_probability_at_one_over_the_root_of_the_dimension_is_that_of_a_normal_deviate_beyond_1() -> None:
    assert cap_probability(1 / math.sqrt(4096), 4096) == pytest.approx(0.3173, abs=1e-3)
    assert cap_probability(0.05, 1024) == pytest.approx(erfc(0.05 * math.sqrt(512)), rel=0.01)
    assert cap_probability(0.0, 5) == 1 and cap_probability(1.0, 5) == 0


def test_the_bound_grows_with_the_cosine_and_stays_above_its_closed_form() -> None:
    cosines = [0.0, 0.01, 0.03, 0.05, 0.1]
    for dim in (64, 1024):
        bounds = [capacity_lower_bound(c, dim, 16) for c in cosines]
        assert bounds[0] == pytest.approx(1 / 16) and bounds == sorted(bounds)
        for c, bound in zip(cosines[1:], bounds[1:], strict=True):
            u = math.sqrt(c * c * dim / (2 - c * c))
            assert 1 / (16 * erfc(u)) > capacity_exponential_bound(c, dim, 16)
            assert bound > capacity_exponential_bound(c, dim, 16)
    assert capacity_lower_bound(1.0, 64, 16) == math.inf


def test_the_cosine_of_routed_tokens_is_measured() -> None:
    gate, x_TD = PoolingGate(D, N), torch.randn(300, D, dtype=torch.double)
    expert_T = gate(x_TD).argmax(1)
    weight_ND = gate.weights().double()
    cosines = [
        float(x @ weight_ND[e] / x.norm() / weight_ND[e].norm()) for x, e in zip(x_TD, expert_T.tolist(), strict=True)
    ]
    assert routed_cosine(x_TD, weight_ND, expert_T) == pytest.approx(min(cosines), rel=1e-5)
    assert routed_cosine(x_TD, weight_ND, expert_T, 0.5) == pytest.approx(float(np.median(cosines)), rel=1e-5)
    with pytest.raises(ConfigError, match="quantile=2"):
        routed_cosine(x_TD, weight_ND, expert_T, 2)
    with pytest.raises(ConfigError, match=r"cosine=1\.5 must be between 0 and 1"):
        cap_probability(1.5, 8)
    with pytest.raises(ConfigError, match="dim=1 must be at least 2"):
        capacity_lower_bound(0.1, 1, 8)
    with pytest.raises(ConfigError, match="num_experts must be at least 1"):
        capacity_exponential_bound(0.1, 8, 0)


def test_with_noise_and_capacity_it_keeps_the_contract() -> None:
    check_method("locmoe", {"top_k": 2, "noise_std": 0.1, "capacity_factor": 1.0, "relu": False, "nodes": 2})
