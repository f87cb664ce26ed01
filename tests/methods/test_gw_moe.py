"""GW-MoE (arXiv 2406.12375): uncertain tokens train all experts, inference stays what it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router, Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.losses import BalanceLoss
from libmoe.methods.gw_moe import as_before, broadcast_uncertain
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.routers import (
    CosineGate,
    CosineRouter,
    ExpertChoiceRouter,
    HashRouter,
    SigmoidRouter,
    TopKRouter,
    TopPRouter,
)
from libmoe.routers.broadcast import BroadcastRouter, routing_entropy
from libmoe.testing import check_router

N, D = 8, 16


def build(training: bool = True, **given: Any) -> MoELayer:
    layer = libmoe.create("gw-moe", num_experts=N, **given).build_layer(Site(D, 24, seed=0, init_std=0.2))
    nn.init.normal_(layer.router.base.gate.weight, std=0.5)
    return layer.double().train(training)


def base_of(layer: MoELayer) -> MoELayer:
    plain = copy.deepcopy(layer)
    plain.router = plain.router.base
    return plain


def route(layer: MoELayer, x_TD: Tensor, **inputs: Tensor) -> Routing:
    length = len(x_TD) if not inputs else next(iter(inputs.values())).shape[1]
    ctx = ForwardContext(inputs).layer(0, (len(x_TD) // length, length), layer.training)
    return layer.route(x_TD, ctx)


def entropy(p_N: Tensor) -> float:
    return -sum(p * math.log(p + 1e-5) for p in p_N.tolist())


# -- the extremes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"top_k": 2, "renormalise": True}, {"capacity_factor": 0.5}])
def test_a_threshold_that_nobody_reaches_leaves_the_model_as_it_is(given: dict[str, Any]) -> None:
    layer, x = build(threshold=1.01, **given), torch.randn(2, 20, D).double()
    assert torch.equal(layer(x), base_of(layer)(x))


def test_a_threshold_that_all_reach_is_the_dense_mixture() -> None:
    layer, x_TD = build(threshold=0.0, slots=None), torch.randn(20, D).double()
    p_TN = (x_TD @ layer.router.base.gate.weight.T).softmax(1)
    expected = sum(p_TN[:, e, None] * layer.experts.materialise(e)(x_TD) for e in range(N))
    torch.testing.assert_close(layer.execute(x_TD, route(layer, x_TD)), expected)


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.9, 1.0])
def test_outside_training_nothing_is_broadcast(threshold: float) -> None:
    layer, x = build(False, threshold=threshold, slots=None), torch.randn(2, 20, D).double()
    assert torch.equal(layer(x), base_of(layer)(x))


# -- who is uncertain, and what for -----------------------------------------------------------------------


def test_uncertain_tokens_are_those_of_large_entropy() -> None:
    layer, x_TD = build(threshold=0.8, slots=None), torch.randn(200, D).double()
    p_TN = (x_TD @ layer.router.base.gate.weight.T).softmax(1)
    routing = route(layer, x_TD)
    wanted = [entropy(p_N) >= 0.8 * math.log(N) for p_N in p_TN]
    # The threshold is a share of the largest value of the formula, 2.0793 of ln 8 = 2.0794.
    near = [abs(entropy(p_N) - 0.8 * math.log(N)) < 1e-3 for p_N in p_TN]
    found = routing.extras["uncertain_T"].tolist()
    assert all(f == w for f, w, n in zip(found, wanted, near, strict=True) if not n)
    assert 10 < sum(found) < 190
    count_T = routing.plan.experts_per_token()
    assert count_T.tolist() == [N if f else 1 for f in found]


def test_entropy_is_that_of_the_released_code() -> None:
    p_TN = torch.randn(30, N).double().softmax(1)
    torch.testing.assert_close(routing_entropy(p_TN), torch.tensor([entropy(p_N) for p_N in p_TN]).double())
    one_hot = torch.eye(N).double()
    assert (routing_entropy(one_hot) == 0).all()


def test_equal_scores_are_uncertain_at_any_threshold_up_to_1() -> None:
    for n in (2, 8, 64):
        router = BroadcastRouter(TopKRouter(n, n, 1, gate=nn.Identity()), threshold=1.0)
        ctx = ForwardContext().layer(0, (1, 4), True)
        assert router.train()(torch.zeros(4, n), ctx).extras["uncertain_T"].all()


def test_an_uncertain_token_trains_every_expert_and_a_certain_one_its_own() -> None:
    layer = build(threshold=0.9)
    layer.router.base.gate.weight.data[:] = 0
    layer.router.base.gate.weight.data[:, 0] = torch.arange(N).double()
    for first, trained in ((0.0, set(range(N))), (5.0, {7})):
        layer.zero_grad()
        x = torch.randn(1, 1, D).double()
        x[..., 0] = first
        layer(x).square().sum().backward()
        assert {e for e in range(N) if layer.experts.w_in.grad[e].abs().sum() > 0} == trained


def test_equal_experts_answer_whole_where_top_1_answers_with_its_probability() -> None:
    layer, x_TD = build(threshold=0.9), torch.randn(40, D).double()
    for parameter in layer.experts.parameters():
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    routing = route(layer, x_TD)
    y_TD, uncertain_T = layer.execute(x_TD, routing), routing.extras["uncertain_T"]
    e_TD = layer.experts.materialise(0)(x_TD)
    assert 0 < int(uncertain_T.sum()) < 40
    torch.testing.assert_close(y_TD[uncertain_T], e_TD[uncertain_T])
    p_T = (x_TD @ layer.router.base.gate.weight.T).softmax(1).max(1).values
    torch.testing.assert_close(y_TD[~uncertain_T], (p_T[:, None] * e_TD)[~uncertain_T])


def test_of_each_sequence_the_first_uncertain_tokens_have_a_slot() -> None:
    slots, length = 3, 12
    layer, x_TD = build(threshold=0.6, slots=slots), torch.randn(4 * length, D).double()
    mask = torch.ones(4, length, dtype=torch.long)
    mask[1, :5] = 0  # padding on the left
    mask[2, 9:] = 0
    layer.router.slots = None
    all_T = route(layer, x_TD, attention_mask=mask).extras["uncertain_T"].view(4, -1)
    layer.router.slots = slots
    found_T = route(layer, x_TD, attention_mask=mask).extras["uncertain_T"].view(4, -1)
    assert not all_T[mask == 0].any(), "padding is never uncertain"
    for candidates, chosen in zip(all_T, found_T, strict=True):
        places = candidates.nonzero().flatten().tolist()
        assert chosen.nonzero().flatten().tolist() == places[:slots]
    assert (all_T.sum(1) > slots).any()
    assert not route(build(threshold=0.5, slots=0), x_TD).extras["uncertain_T"].any()


def test_documents_packed_in_a_row_have_slots_of_their_own() -> None:
    layer, x_TD = build(threshold=0.0, slots=2), torch.randn(12, D).double()
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]])
    found = route(layer, x_TD, position_ids=positions).extras["uncertain_T"]
    assert found.nonzero().flatten().tolist() == [0, 1, 5, 6, 8, 9]


def test_broadcast_tokens_take_no_place_from_anybody() -> None:
    layer, x_TD = build(threshold=0.85, capacity_factor=0.5, slots=None), torch.randn(40, D).double()
    routing = route(layer, x_TD)
    chosen, plan, uncertain_T = routing.extras["chosen"], routing.plan, routing.extras["uncertain_T"]
    assert not chosen.kept_A[uncertain_T].all() and not chosen.kept_A[~uncertain_T].all()
    assert plan.kept_A[uncertain_T[plan.token_A]].all(), "a broadcast token loses no expert"
    left_A = ~uncertain_T[plan.token_A]
    assert torch.equal(plan.kept_A[left_A], chosen.kept_A[~uncertain_T])


def test_the_balance_loss_is_that_of_the_model_without_broadcasts() -> None:
    layer, x_TD = build(threshold=0.0, slots=None), torch.randn(40, D).double()
    ctx = ForwardContext().layer(0, (1, 40), True)
    ours, _ = layer.losses[0].compute(layer.route(x_TD, ctx), ctx)
    base = layer.router.base.route(x_TD, ctx)
    expected, _ = BalanceLoss(1.0).compute(base, ctx)
    torch.testing.assert_close(ours, expected)
    spread, _ = BalanceLoss(1.0).compute(layer.route(x_TD, ctx), ctx)
    assert (spread - expected).abs() > 1e-3


# -- around other routers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        lambda: TopKRouter(D, N, 2, softmax_after_topk=True),
        lambda: SigmoidRouter(D, N, 2),
        lambda: CosineRouter(D, N, 2, gate=CosineGate(D, N)),
        lambda: TopPRouter(D, N, threshold=0.3),
    ],
)
def test_it_goes_around_any_router_with_scores(base: Any) -> None:
    router: Router = BroadcastRouter(base(), threshold=0.0, slots=2)
    check_router(router, dim=D)
    x_TD, ctx = torch.randn(30, D), ForwardContext().layer(0, (1, 30), True)
    assert int(router.train()(x_TD, ctx).extras["uncertain_T"].sum()) == 2


@pytest.mark.parametrize("base", [HashRouter(N, 1), ExpertChoiceRouter(D, N)])
def test_a_router_that_gives_it_nothing_to_go_by_says_so(base: Router) -> None:
    router = BroadcastRouter(base, threshold=0.9).train()
    ctx = ForwardContext({"input_ids": torch.zeros(1, 4, dtype=torch.long)}).layer(0, (1, 4), True)
    if isinstance(base, HashRouter):
        with pytest.raises(ConfigError, match="HashRouter gives no scores to be uncertain about"):
            router(torch.randn(4, D), ctx)
    else:
        assert not router.causal, "declarations are those of the router inside"


def test_a_model_that_is_there_is_fine_tuned_and_taken_back() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=50)
    model = libmoe.moeify(build_backbone(config), "smoe", options={"num_experts": 4}, seed=0)
    names, ids = list(model.state_dict()), torch.randint(50, (2, 12))
    before = model.eval()(ids).logits
    assert broadcast_uncertain(model, threshold=0.5) == 2
    assert torch.equal(model.eval()(ids).logits, before)
    assert not torch.equal(model.train()(ids).logits, before)
    assert as_before(model) == 2 and list(model.state_dict()) == names
    assert torch.equal(model.train()(ids).logits, before)
    with pytest.raises(ConfigError, match="has no MoE layer"):
        broadcast_uncertain(build_backbone(config))
    assert [layer.index for _, layer in moe_layers(model)] == [0, 1]


def test_recomputation_broadcasts_the_same_tokens() -> None:
    layer, x_TD = build(threshold=0.9, slots=4), torch.randn(30, D).double()
    forward = ForwardContext()
    with use(forward):
        ctx = forward.layer(0, (1, 30), True)
        first = layer.router(x_TD, ctx)
        forward.recomputing = True
        again = layer.router(x_TD + 1, ctx)
    assert torch.equal(first.extras["uncertain_T"], again.extras["uncertain_T"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": math.nan}, "threshold=nan must be a number"),
        ({"slots": -1}, "slots=-1 must not be negative"),
        ({"balance_scope": "rank"}, "is not counted by this loss"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("gw-moe", **given).build_layer(Site(D, 24))
