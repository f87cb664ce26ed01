"""The routers that are compared for vision (arXiv 2401.15969): one formulation, transport plans, groups, priorities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, LayerContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.routing_tensors import routing_tensors
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import ImportanceLoss, LoadLoss
from libmoe.routers import ExpertChoiceRouter, SinkhornRouter, TopKRouter, TransportChoiceRouter
from libmoe.routers.places import Places
from libmoe.routers.transport import quadratic_plan, sinkhorn

N, D, B, L = 4, 12, 3, 16
TOKEN_CHOICE = ["softmax-token-choice", "sinkhorn-token-choice"]
EXPERT_CHOICE = ["softmax-expert-choice", "sinkhorn-expert-choice", "sparse-expert-choice"]
SIX = [*TOKEN_CHOICE, *EXPERT_CHOICE, "soft-moe"]


def build(name: str, training: bool = False, **options: Any) -> MoELayer:
    given = {"num_experts": N, **({"seq_len": L} if name == "soft-moe" else {"top_k": 2})} | options
    layer = libmoe.create(name, given).build_layer(Site(D, 24, seed=0, init_std=0.4)).double().train(training)
    with torch.no_grad():
        for weight in layer.router.parameters():
            weight.mul_(20 if name != "soft-moe" else 3)
    return layer


def context(rows: int = B, length: int = L, training: bool = False, **inputs: Tensor) -> LayerContext:
    return ForwardContext(inputs).layer(0, (rows, length), training)


def images(rows: int = B, length: int = L) -> Tensor:
    return torch.randn(rows, length, D, dtype=torch.float64)


def routed(layer: MoELayer, x_BLD: Tensor) -> Routing:
    return layer.router(x_BLD.flatten(0, 1), context(*x_BLD.shape[:2], training=layer.training))


# -- one formulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SIX)
def test_every_router_is_a_dispatch_and_a_combine_tensor(name: str, training: bool) -> None:
    layer, x = build(name, training), images()
    with use(ForwardContext()):
        torch.manual_seed(3)
        routing = routed(layer, x)
    y_TD = layer.execute(x.flatten(0, 1), routing)
    dispatch, combine = routing_tensors(routing.plan)
    slots = torch.einsum("tnc,td->ncd", dispatch, x.flatten(0, 1))
    done = torch.stack([layer.experts.materialise(e)(slots[e]) for e in range(N)])
    assert torch.allclose(torch.einsum("tnc,ncd->td", combine, done), y_TD, atol=1e-10)
    if name != "soft-moe":
        assert set(dispatch.unique().tolist()) == {0.0, 1.0} and dispatch.sum(0).max() == 1  # one token in a slot
        assert not combine[dispatch == 0].any()


def test_weights_on_inputs_and_dropped_assignments_have_their_place_in_the_tensors() -> None:
    token_A, expert_A = torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0])
    weight_A = torch.tensor([0.5, 0.25, 0.75])
    plan = SparsePlan(token_A, expert_A, weight_A, 2, 2, kept_A=torch.tensor([True, False, True]), scale_input=True)
    dispatch, combine = routing_tensors(plan)
    assert dispatch.tolist() == [[[0.0], [0.5]], [[0.75], [0.0]]]
    assert combine.tolist() == [[[0.0], [1.0]], [[1.0], [0.0]]]
    with pytest.raises(ConfigError, match="merge plan"):
        routing_tensors(MergePlan(torch.ones(1, 2), 2))


# -- transport ---------------------------------------------------------------------------------------------


def test_a_sinkhorn_plan_has_its_marginals_and_does_not_see_constants() -> None:
    z, real = 2 * torch.randn(1, 24, N, dtype=torch.float64), torch.ones(1, 24, dtype=torch.bool)
    plan = sinkhorn(z, real, 200).exp()
    assert torch.allclose(plan.sum(2), torch.ones(1, 24, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(plan.sum(1), torch.full((1, N), 24 / N, dtype=torch.float64), atol=1e-4)
    scaling = plan.log() - z  # log u + log v
    assert torch.allclose(scaling - scaling[:, :1] - scaling[:, :, :1] + scaling[:, :1, :1], torch.zeros_like(z))
    row, column = torch.randn(1, 24, 1, dtype=torch.float64), torch.randn(1, 1, N, dtype=torch.float64)
    assert torch.allclose(sinkhorn(z + row + column, real, 200).exp(), plan, atol=1e-6)
    assert not torch.allclose((z + column).softmax(-1), z.softmax(-1), atol=0.05)


def test_a_sinkhorn_plan_of_a_shorter_group_is_that_of_the_group_alone() -> None:
    z, real = torch.randn(2, 10, N), torch.ones(2, 10, dtype=torch.bool)
    real[1, 6:] = False
    plan = sinkhorn(z, real, 20)
    assert torch.allclose(plan[1, :6], sinkhorn(z[1:, :6], real[1:, :6], 20)[0], atol=1e-5)
    assert plan[1, 6:].isneginf().all() and not plan.isnan().any()


def test_tokens_choose_by_the_plan_and_are_weighed_by_the_softmax() -> None:
    z = 2 * torch.randn(L, N, dtype=torch.float64)
    router = SinkhornRouter(N, N, 2, gate=torch.nn.Identity()).eval()
    plan = router.route(z, context(1)).plan
    best = sinkhorn(z[None], torch.ones(1, L, dtype=torch.bool), 20)[0].topk(2).indices
    assert torch.equal(plan.expert_A.view(L, 2), best)
    assert not torch.equal(best, z.topk(2).indices)
    assert torch.equal(plan.weight_A.view(L, 2), z.softmax(-1).gather(1, best))


@pytest.mark.parametrize("limit", [3, 5])
def test_a_sparse_plan_has_no_more_entries_for_an_expert_than_its_limit(limit: int) -> None:
    s, real = torch.randn(2, 12, N, dtype=torch.float64), torch.ones(2, 12, dtype=torch.bool)
    real[1, 8:] = False
    plan = quadratic_plan(s, real, torch.tensor([limit, limit]), iterations=100, rate=0.05)
    assert int((plan > 0).sum(1).max()) <= limit and (plan >= 0).all() and not plan[1, 8:].any()
    assert torch.allclose(plan.sum(1), torch.tensor([12 / N, 8 / N], dtype=torch.float64).view(2, 1))
    free = quadratic_plan(s, real, torch.tensor([12, 12]), iterations=100, rate=0.05)
    assert int((free > 0).sum(1).max()) > limit


def test_a_plan_without_limit_is_that_of_quadratic_transport() -> None:
    t, n, strength = 6, 3, 0.7
    torch.manual_seed(1)
    s = torch.randn(t, n, dtype=torch.float64)
    ours = quadratic_plan(
        s[None], torch.ones(1, t, dtype=torch.bool), torch.tensor([t]), strength=strength, iterations=3000, rate=0.01
    )[0]

    def cost(flat: Any) -> float:
        p = torch.from_numpy(flat).view(t, n)
        return float(strength / 2 * p.square().sum() - (s * p).sum())

    exact = minimize(
        cost,
        torch.full((t * n,), 1 / n).double().numpy(),
        bounds=[(0, None)] * (t * n),
        constraints=[
            {"type": "eq", "fun": lambda p: p.reshape(t, n).sum(1) - 1},
            {"type": "eq", "fun": lambda p: p.reshape(t, n).sum(0)[1:] - t / n},  # the first follows
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert exact.success
    assert float((ours - torch.from_numpy(exact.x).view(t, n)).abs().max()) < 1e-3
    assert float((ours.sum(1) - 1).abs().max()) < 1e-3


# -- expert choice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERT_CHOICE)
def test_every_expert_takes_exactly_its_share_of_every_image(name: str) -> None:
    layer, x = build(name, num_experts=N, capacity_factor=1.0), images()
    plan = routed(layer, x).plan
    of_image = torch.zeros(B, N, dtype=torch.long).index_put(
        (plan.token_A // L, plan.expert_A), torch.tensor(1), accumulate=True
    )
    assert (of_image == L // N).all() and len(plan.token_A) == B * L  # c n / N = 4, a multiple of 4
    scores_TN = routed(layer, x).logits_TN.softmax(-1)
    assert torch.equal(plan.weight_A, scores_TN[plan.token_A, plan.expert_A])


@pytest.mark.parametrize(("length", "picks"), [(16, 8), (17, 12), (4, 4), (2, 2)])
def test_picks_are_rounded_up_to_fours_but_no_group_is_exceeded(length: int, picks: int) -> None:
    plan = routed(build("softmax-expert-choice"), images(2, length)).plan  # c n / N = n / 2
    assert plan.load_N().tolist() == [2.0 * picks] * N


def test_a_token_that_no_expert_wants_gets_none() -> None:
    z = torch.zeros(8, N, dtype=torch.float64)
    z[0] = torch.tensor([0.0, 0, 0, 0])
    for t in range(1, 8):
        z[t, t % N] = 3.0  # sure of one expert each
    router = ExpertChoiceRouter(N, N, 0.5, gate=torch.nn.Identity()).eval()
    assert 0 not in router.route(z, context(1, 8)).plan.token_A.tolist()


@pytest.mark.parametrize("name", [*EXPERT_CHOICE, "sinkhorn-token-choice", "soft-moe"])
def test_tokens_depend_on_their_image_and_on_no_other(name: str) -> None:
    layer, x = build(name), images()
    y, same, other = layer(x), x.clone(), x.clone()
    same[0, 5:] = torch.randn(L - 5, D, dtype=torch.float64)
    other[1:] = torch.randn(B - 1, L, D, dtype=torch.float64)
    assert not torch.allclose(layer(same)[0, :5], y[0, :5])
    assert torch.allclose(layer(other)[0], y[0])


def test_plans_leave_fewer_tokens_without_an_expert_than_scores() -> None:
    rows = 20
    z = 2 * torch.randn(rows * L, N, dtype=torch.float64) + torch.tensor([2.0, 0, 0, -1.0])
    picks = []
    for router in (
        ExpertChoiceRouter(N, N, 1.0, gate=torch.nn.Identity()),
        TransportChoiceRouter(N, N, 1.0, gate=torch.nn.Identity()),
        TransportChoiceRouter(N, N, 1.0, transport="sparse", rate=0.1, iterations=200, gate=torch.nn.Identity()),
    ):
        plan = router.eval().route(z, context(rows)).plan
        picks.append(torch.zeros(rows * L, N).index_put((plan.token_A, plan.expert_A), torch.tensor(1.0)))
    left = [int((picked.sum(1) == 0).sum()) for picked in picks]
    assert max(left[1:]) < 0.75 * left[0]  # over four draws of 320 tokens: 48 to 57 against 18 to 29
    log_GLN = sinkhorn(z.view(rows, L, N), torch.ones(rows, L, dtype=torch.bool), 20)
    best = log_GLN.topk(L // N, dim=1).indices
    assert torch.equal(picks[1].view(rows, L, N), torch.zeros(rows, L, N).scatter(1, best, 1.0))
    assert not torch.equal(picks[1], picks[2])


# -- soft --------------------------------------------------------------------------------------------------


def test_soft_slots_and_tokens_are_averages_that_reach_everyone() -> None:
    layer, x = build("soft-moe", training=True), images().requires_grad_()
    plan = routed(layer, x).plan
    assert isinstance(plan, SoftPlan)
    assert torch.allclose(plan.dispatch_GLS.sum(1), torch.ones(B, plan.dispatch_GLS.shape[2], dtype=torch.float64))
    assert torch.allclose(plan.combine_GLS.sum(2), torch.ones(B, L, dtype=torch.float64))
    scaled = routed(layer, 7 * x).plan  # but for the 1e-6 under the root
    assert torch.allclose(scaled.dispatch_GLS, plan.dispatch_GLS, atol=1e-5)
    layer(x)[0, 0].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).all() and not x.grad[1:].any()
    assert (layer.experts.w_in.grad.abs().sum((1, 2)) > 0).all()
    slots = torch.einsum("gls,gld->gsd", plan.dispatch_GLS, x)
    expert = layer.experts.materialise(0)
    for e in range(N):
        layer.experts.load_ffn(e, expert)
    expected = torch.einsum("gls,gsd->gld", plan.combine_GLS, expert(slots))
    assert torch.allclose(layer(x), expected)


# -- token choice ------------------------------------------------------------------------------------------


def kept(z: Tensor, rows: int = 1, mask: Tensor | None = None, **options: Any) -> Tensor:
    """bool ``[T, K]``: assignments that found a place."""
    router = TopKRouter(z.shape[1], z.shape[1], gate=torch.nn.Identity(), renormalise=False, **options).train()
    ctx = context(rows, len(z) // rows, True, **({} if mask is None else {"attention_mask": mask}))
    plan = router.route(z, ctx).plan
    return plan.kept_A.view(len(z), -1)


def test_with_one_place_the_more_important_token_keeps_it_even_if_it_comes_later() -> None:
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # both want expert 0; two tokens, two experts: one place each
    assert kept(z, top_k=1, capacity_factor=1.0).flatten().tolist() == [True, False]
    assert kept(z, top_k=1, capacity_factor=1.0, places=Places(queue="score")).flatten().tolist() == [False, True]
    method = libmoe.create("softmax-token-choice", batch_priority=True, num_experts=2, top_k=1)
    assert method.build_layer(Site(D, 8)).router.places.queue == "score"


def test_every_image_has_places_of_its_own() -> None:
    z, mask = 3 * torch.randn(2 * L, N), torch.ones(2, L, dtype=torch.long)
    mask[1, 9:] = 0
    options = {"top_k": 2, "capacity_factor": 0.8, "places": Places(group="sequence", multiple=2)}
    together = kept(z, 2, mask, **options)
    first, second = (kept(z[s], **options) for s in (slice(0, L), slice(L, L + 9)))
    assert torch.equal(together[:L], first) and torch.equal(together[L : L + 9], second)
    assert not together[L + 9 :].any() and not (first.all() or second.all())


@pytest.mark.parametrize(("multiple", "places"), [(1, 9), (4, 12)])
def test_places_are_rounded_up_to_a_multiple(multiple: int, places: int) -> None:
    z = torch.zeros(L, N)
    z[:, 0] = 5.0
    options = {"top_k": 2, "capacity_factor": 1.05, "places": Places(multiple=multiple)}
    assert int(kept(z, **options)[:, 0].sum()) == min(places, L)  # 1.05 * 32 / 4 = 8.4


def test_weights_are_probabilities_of_noisy_logits_that_do_not_sum_to_one() -> None:
    layer = build("softmax-token-choice", training=True, capacity_factor=None)
    routing = routed(layer, images())
    clean, noisy = routing.extras["clean_TN"], routing.logits_TN
    assert torch.equal(routing.plan.weight_A.view(-1, 2), noisy.softmax(-1).topk(2).values)
    big = libmoe.create("softmax-token-choice", num_experts=16).build_layer(Site(D, 8, seed=0)).train()
    noise = routed(big, images(20, 100).float())
    assert float((noise.logits_TN - noise.extras["clean_TN"]).detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert clean.shape == noisy.shape and float(routing.plan.weight_A.detach().view(-1, 2).sum(-1).min()) < 0.9


def test_importance_is_of_clean_probabilities_and_load_of_chances_to_be_chosen_for_each_image() -> None:
    layer, x = build("softmax-token-choice", training=True), images(2)
    routing, ctx = routed(layer, x), context(2, training=True)
    clean, noisy = routing.extras["clean_TN"], routing.logits_TN
    chance = torch.special.ndtr((clean - noisy.topk(2).values[:, 1:]) * N)  # std 1 / N
    for loss, mass in ((layer.losses[0], clean.softmax(-1)), (layer.losses[1], chance)):
        of_image = mass.view(2, L, N).sum(1)
        expected = (of_image.var(1) / of_image.mean(1) ** 2).mean()
        numerator, tokens = loss.compute(routing, ctx)
        assert float(numerator / tokens) == pytest.approx(float(expected))
        assert loss.coefficient == 0.005
    assert isinstance(layer.losses[0], ImportanceLoss) and isinstance(layer.losses[1], LoadLoss)


def test_experts_may_start_as_one() -> None:
    layer = build("softmax-token-choice", equal_experts=True)
    assert torch.equal(layer.experts.w_in, layer.experts.w_in[:1].expand(N, -1, -1))
    assert not torch.equal(build("softmax-token-choice").experts.w_in[0], build("softmax-token-choice").experts.w_in[1])


def test_options_that_do_not_go_together_are_refused() -> None:
    for make, message in (
        (lambda: TransportChoiceRouter(D, N, score_axis="tokens"), "score_axis='experts'"),
        (lambda: TransportChoiceRouter(D, N, transport="sinkhron"), "'sinkhorn'"),
        (lambda: TopKRouter(D, N, places=Places(group="image")), "unknown group of places 'image'"),
        (lambda: SinkhornRouter(D, N, scores="softmx"), "'softmax'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    assert math.isclose(build("soft-moe").router.rows_per_token, 1.0)
