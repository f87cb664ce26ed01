"""Random token selection (Z-code M3, arXiv 2109.10465): which tokens an expert keeps when too many choose it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from libmoe.routers import TopKRouter
from libmoe.routers.places import Places

N, D, T = 4, 6, 40
LOGITS = torch.tensor([[3.0, 0.0, 0.0, 0.0]] * 30 + [[0.0, 3.0, 0.0, 0.0]] * 7 + [[0.0, 0.0, 3.0, 0.0]] * 3).double()
PLACES = math.ceil(T / N)


def router(queue: Any = "random", training: bool = True, **options: Any) -> TopKRouter:
    options = {"capacity_factor": 1.0} | options
    made = TopKRouter(N, N, 1, renormalise=False, places=Places(queue=queue), gate=torch.nn.Identity(), **options)
    return made.train(training)


def kept(queue: Any = "random", logits_TN: Tensor = LOGITS, **options: Any) -> Tensor:
    made = router(queue, **options)
    plan = made.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), made.training)).plan
    assert isinstance(plan, SparsePlan) and plan.kept_A is not None
    return plan.kept_A


def test_each_token_of_a_crowded_expert_survives_equally_often_wherever_it_stands() -> None:
    draws = 2000
    count_T = torch.stack([kept() for _ in range(draws)]).sum(0)
    crowded_T = count_T[:30]
    assert crowded_T.sum() == draws * PLACES
    assert chisquare(crowded_T.numpy()).pvalue > 1e-4
    # Survivors of one draw exclude each other, which narrows the counts below a binomial's: they are not all equal.
    assert crowded_T.min() < draws * PLACES / 30 < crowded_T.max()
    assert (count_T[30:] == draws).all(), "experts with places for all keep all"


def test_by_position_survivors_are_exactly_the_first_and_by_score_the_surest() -> None:
    first_T = torch.cat([torch.arange(30) < PLACES, torch.ones(10, dtype=torch.bool)])
    assert torch.equal(kept("position"), first_T)
    logits_TN = LOGITS.clone()
    logits_TN[:30, 0] += torch.linspace(0, 1, 30)
    assert torch.equal(kept("score", logits_TN), torch.cat([first_T[:30].flip(0), first_T[30:]]))


@pytest.mark.parametrize("queue", ["random", "position", "score"])
def test_the_number_of_survivors_does_not_depend_on_who_they_are(queue: Any) -> None:
    assert int(kept(queue).sum()) == PLACES + 7 + 3
    assert kept(queue, capacity_factor=3.0).all(), "nothing changes where nobody is too many"


def test_the_loss_counts_choices_before_any_token_is_dropped() -> None:
    context = ForwardContext().layer(0, (1, T), True)
    values = []
    for queue in ("random", "position"):
        numerator, denominator = BalanceLoss(1.0, "micro_batch").compute(router(queue).route(LOGITS, context), context)
        values.append(float(numerator / denominator))
    p_N = LOGITS.softmax(1).mean(0)
    assert values == pytest.approx([float(N * (p_N * torch.tensor([30, 7, 3, 0]) / T).sum())] * 2)


def test_a_draw_is_repeated_when_recomputed_and_new_in_the_next_forward() -> None:
    context = ForwardContext().layer(0, (1, T), True)
    made = router()
    first = made.route(LOGITS, context).plan.kept_A
    context.forward.recomputing = True
    assert torch.equal(made.route(LOGITS, context).plan.kept_A, first)
    assert not torch.equal(kept(), first)


def test_outside_training_places_go_by_position() -> None:
    assert torch.equal(kept(training=False, eval_capacity_factor=1.0), kept("position"))
    made = router(training=False)
    assert made.route(LOGITS, ForwardContext().layer(0, (1, T), False)).plan.kept_A is None


def test_second_choices_wait_for_all_first_ones_in_the_same_random_order() -> None:
    made = TopKRouter(3, 3, 2, capacity_factor=0.5, places=Places(queue="random"), gate=torch.nn.Identity()).train()
    logits_TN = torch.tensor([[3.0, 2.0, 0.0]] * 6 + [[0.0, 3.0, 2.0]] * 2)
    for _ in range(20):
        plan = made.route(logits_TN, ForwardContext().layer(0, (1, 8), True)).plan
        kept_TK = plan.kept_A.view(8, 2)
        assert kept_TK[6:, 0].all(), "two of the three places of expert 1 are for those who want it first"
        assert kept_TK[:6, 0].sum() == 3 and kept_TK[:6, 1].sum() == 1
        assert (kept_TK[:6, 1] <= kept_TK[:6, 0]).all(), "who is served first in one round is so in the next"


def test_padding_takes_no_place() -> None:
    mask = torch.ones(1, T, dtype=torch.long)
    mask[0, :20] = 0
    context = ForwardContext({"input_ids": torch.zeros(1, T, dtype=torch.long), "attention_mask": mask})
    kept_T = router().route(LOGITS, context.layer(0, (1, T), True)).plan.kept_A
    assert not kept_T[:20].any() and int(kept_T[20:30].sum()) == math.ceil(20 / N)


def build(training: bool = True, **options: Any) -> MoELayer:
    method = libmoe.create("random-token-selection", num_experts=N, **options)
    return method.build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)


def test_the_method_is_deepspeeds_top_1_gate() -> None:
    layer = build(jitter=0.0)
    made = layer.router
    assert (made.places.queue, made.capacity_factor, made.places.minimum, made.renormalise) == ("random", 1.0, 4, False)
    x_TD = torch.randn(T, D).double()
    plan = layer.route(x_TD, ForwardContext().layer(0, (1, T), True)).plan
    p_TN = torch.softmax(x_TD @ made.gate.weight.T, 1)
    assert torch.equal(plan.expert_A, p_TN.argmax(1))
    torch.testing.assert_close(plan.weight_A, p_TN.max(1).values)
    y_TD = layer.execute(x_TD, layer.route(x_TD, ForwardContext().layer(0, (1, T), True)))
    assert y_TD.isfinite().all()


@pytest.mark.parametrize(("tokens", "places"), [(8, 4), (16, 4), (17, 5)])
def test_an_expert_has_at_least_four_places(tokens: int, places: int) -> None:
    layer = build(jitter=0.0, training=True)
    torch.nn.init.zeros_(layer.router.gate.weight)
    plan = layer.router.route(torch.randn(tokens, D).double(), ForwardContext().layer(0, (1, tokens), True)).plan
    assert int(plan.kept_A.sum()) == min(tokens, places)
    dropped_T = ~plan.kept_A
    y_TD = layer.execute(torch.randn(tokens, D).double(), layer.route(
        torch.randn(tokens, D).double(), ForwardContext().layer(0, (1, tokens), True)))  # fmt: skip
    assert int((y_TD == 0).all(1).sum()) == int(dropped_T.sum()), "a dropped token gets nothing from the layer"


def test_another_queue_is_refused() -> None:
    with pytest.raises(ConfigError, match="'positon' is not allowed; did you mean 'position'"):
        build(queue="positon")
    with pytest.raises(ConfigError, match="unknown queue of places 'positon'; did you mean 'position'"):
        router("positon")
