"""Variants of Expert Choice: how k is rounded, noise on the gate's input, and evaluation by a predictor of picks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers.moe import MoELayer
from libmoe.losses import SelectionLoss
from libmoe.methods import create
from libmoe.routers import ExpertChoiceRouter
from libmoe.routers.noise import InputJitter
from libmoe.routers.picks import Picks
from libmoe.testing import check_loss, check_method

DIM, N = 8, 4


def make_layer(**options: Any) -> MoELayer:
    site = Site(DIM, 16, init_std=0.5)
    return create("expert-choice", {"num_experts": N, **options}).build_layer(site).double().eval()


def route(layer: MoELayer, x: Tensor, inputs: dict[str, Tensor] | None = None) -> Routing:
    ctx = ForwardContext(inputs).layer(0, tuple(x.shape[:2]), layer.training)
    return layer.route(x.flatten(0, 1), ctx)


def picked(routing: Routing) -> Tensor:
    """bool ``[T, N]``."""
    plan = routing.plan
    return torch.zeros(plan.num_tokens, N).index_put((plan.token_A, plan.expert_A), torch.tensor(1.0)) > 0


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 12, DIM, dtype=torch.float64)


# -- how many tokens an expert takes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),  # for groups of 1, 9, 17, 34 and 40 tokens, of which c n / N is a half
    [
        ({}, [1, 4, 8, 17, 20]),
        ({"rounding": "down"}, [1, 4, 8, 17, 20]),
        ({"rounding": "up"}, [1, 5, 9, 17, 20]),
        ({"min_capacity": 4}, [1, 4, 8, 17, 20]),
        ({"min_capacity": 6}, [1, 6, 8, 17, 20]),
        ({"multiple": 4}, [1, 8, 12, 20, 20]),
        ({"multiple": 4, "rounding": "down"}, [1, 4, 8, 20, 20]),
        ({"multiple": 4, "rounding": "nearest"}, [1, 4, 8, 20, 20]),
    ],
)
def test_k_is_rounded_and_bounded_as_asked(options: dict[str, Any], expected: list[int]) -> None:
    layer = make_layer(**options)
    found = [
        route(layer, torch.randn(2, n, DIM, dtype=torch.float64)).plan.load_N() for n in (1, 9, 17, 34, 40)
    ]
    assert [load_N.tolist() for load_N in found] == [[2.0 * k] * N for k in expected]


@pytest.mark.parametrize(
    ("rounding", "average", "tokens", "k"), [("up", 2.2, 100, 55), ("down", 2.8, 90, 63)]
)
def test_whole_numbers_are_not_rounded_away(rounding: Any, average: float, tokens: int, k: int) -> None:
    """2.2 * 100 / 4 is 55.00000000000001 and 2.8 * 90 / 4 is 62.99999999999999 to a computer."""
    assert average * tokens / 4 != k
    assert Picks(rounding=rounding).count(torch.tensor([tokens]), 4, average).tolist() == [k]


def test_a_given_k_is_not_rounded_and_forcing_an_average_overrules_it(x: Tensor) -> None:
    router = ExpertChoiceRouter(DIM, N, 1.0, tokens_per_expert=5, multiple=4, min_capacity=7).double().eval()

    def load() -> list[float]:
        return router(x.flatten(0, 1), ForwardContext().layer(0, (2, 12), False)).plan.load_N().tolist()

    assert load() == [10.0] * N
    with context.options(interventions=[ForceTopK(3)]):
        assert load() == [2 * 12.0] * N  # 3 * 12 / 4 = 9, up to a multiple of 4


# -- noise on the gate's input ----------------------------------------------------------------------------


def test_jitter_multiplies_the_gates_input_while_training_alone() -> None:
    assert isinstance(make_layer(jitter=0.2).router.noise, InputJitter)
    assert make_layer().router.noise is None
    router = ExpertChoiceRouter(N, N, 1.0, gate=nn.Identity(), noise=InputJitter(0.2))
    x_TN = torch.randn(50, N, dtype=torch.float64)
    ctx = ForwardContext().layer(0, (1, 50), True)
    factor_TN = router.train()(x_TN, ctx).logits_TN / x_TN
    assert 0.8 <= factor_TN.min() < 0.85 and 1.15 < factor_TN.max() <= 1.2
    assert torch.equal(router.eval()(x_TN, ctx).logits_TN, x_TN)


def test_weights_of_jittered_picks_are_their_jittered_probabilities(x: Tensor) -> None:
    routing = route(make_layer(jitter=0.5).train(), x)
    plan = routing.plan
    p_TN = routing.logits_TN.softmax(-1)
    torch.testing.assert_close(plan.weight_A, p_TN[plan.token_A, plan.expert_A])
    assert not torch.equal(picked(routing), picked(route(make_layer(), x)))


# -- evaluation by a predictor ----------------------------------------------------------------------------


def predicting(**options: Any) -> MoELayer:
    return make_layer(eval_policy="predictor", predictor_hidden=16, **options)


def test_a_token_goes_to_the_experts_that_are_predicted_to_pick_it(x: Tensor) -> None:
    layer = predicting()
    routing = route(layer, x)
    assert torch.equal(picked(routing), layer.router.predictor(x.flatten(0, 1)) > 0)
    assert 0 < picked(routing).sum() < picked(routing).numel()
    p_TN, plan = layer.router.gate(x.flatten(0, 1)).softmax(-1), routing.plan
    torch.testing.assert_close(plan.weight_A, p_TN[plan.token_A, plan.expert_A])


def test_by_predictions_tokens_one_by_one_give_what_they_give_together(x: Tensor) -> None:
    layer = predicting()
    one_by_one = torch.cat([layer(x[:, t : t + 1]) for t in range(12)], dim=1)
    torch.testing.assert_close(layer(x), one_by_one)
    none_T = ~picked(route(layer, x)).any(1)
    assert none_T.any() and not layer(x).flatten(0, 1)[none_T].any()


def test_training_picks_by_group_all_the_same(x: Tensor) -> None:
    with torch.no_grad():
        layer, plain = predicting().train(), make_layer().train()
        plain.load_state_dict(layer.state_dict(), strict=False)
        assert torch.equal(picked(route(layer, x)), picked(route(plain, x)))
        assert torch.equal(layer(x), plain(x))


def test_learning_to_predict_reaches_the_predictor_alone(x: Tensor) -> None:
    grads = []
    for coefficient in (0.01, 3.0):
        torch.manual_seed(0)
        layer, given = predicting(prediction=coefficient).train(), x.clone().requires_grad_()
        layer(given).square().sum().backward()
        grads.append({name: p.grad for name, p in layer.named_parameters()} | {"x": given.grad})
    for name, grad in grads[0].items():
        if "predictor" in name:
            assert grad.abs().max() > 0
            torch.testing.assert_close(grads[1][name], 300 * grad)
        else:
            assert torch.equal(grads[1][name], grad), name


def test_the_loss_is_the_cross_entropy_of_picks_over_real_tokens(x: Tensor) -> None:
    layer, mask = predicting().train(), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    ctx = ForwardContext({"attention_mask": mask}).layer(0, (2, 12), True)
    routing = layer.route(x.flatten(0, 1), ctx)
    real_T = mask.flatten().bool()
    target_TN, logit_TN = picked(routing)[real_T].double(), routing.extras["predicted_TN"][real_T]
    numerator, tokens = SelectionLoss(1.0).compute(routing, ctx)
    assert tokens == 19
    torch.testing.assert_close(numerator / tokens, F.binary_cross_entropy(logit_TN.sigmoid(), target_TN))


def test_statistics_tell_how_often_the_predictor_is_right(x: Tensor) -> None:
    layer, statistics = predicting().train(), StepStatistics()
    with context.options(statistics=statistics):
        layer(x)
    routing = route(layer, x)
    right = (picked(routing) == (routing.extras["predicted_TN"] > 0)).double().mean()
    numerator, tokens = statistics.losses[0, "selection/accuracy"]
    assert float(numerator / tokens) == pytest.approx(float(right))


def test_the_predictor_learns_who_would_be_picked() -> None:
    """Saying no to all is right for 3 of 4 pairs."""
    torch.manual_seed(0)
    layer = make_layer(eval_policy="predictor", top_k=1).float().train()
    with torch.no_grad():
        layer.router.gate.weight.mul_(20)
    loss, optimizer = layer.losses[-1], torch.optim.Adam(layer.router.predictor.parameters(), 1e-2)
    for _ in range(200):
        ctx = ForwardContext().layer(0, (8, 64), True)
        numerator, tokens = loss.compute(layer.router(torch.randn(512, DIM), ctx), ctx)
        optimizer.zero_grad()
        (numerator / tokens).backward()
        optimizer.step()
    new = torch.randn(8, 64, DIM)
    by_group, by_prediction = picked(route(layer.train(), new)), picked(route(layer.eval(), new))
    assert float((by_group == by_prediction).double().mean()) > 0.92
    assert float(by_prediction.double().mean()) == pytest.approx(0.25, abs=0.03)


def test_padding_is_not_picked_by_prediction_and_interventions_hold(x: Tensor) -> None:
    layer, mask = predicting(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    real_T1 = mask.view(-1, 1).bool()
    assert torch.equal(picked(route(layer, x, {"attention_mask": mask})), picked(route(layer, x)) & real_T1)
    with context.options(interventions=[BanExperts([2])]):
        banned = picked(route(layer, x))
    assert not banned[:, 2].any() and torch.equal(banned[:, :2], picked(route(layer, x))[:, :2])
    with context.options(interventions=[ForceTopK(2)]):
        best_TK = layer.router.predictor(x.flatten(0, 1)).topk(2).indices
        expected = torch.zeros(24, N, dtype=torch.bool).scatter(1, best_TK, True)
        assert torch.equal(picked(route(layer, x)), expected)


@pytest.mark.parametrize("policy", ["token", "predictor"])
def test_gates_of_one_are_one_outside_groups_too(policy: Any, x: Tensor) -> None:
    router = (
        ExpertChoiceRouter(DIM, N, 2.0, gates="one", eval_policy=policy, scale_input=True).double().eval()
    )
    plan = router(x.flatten(0, 1), ForwardContext().layer(0, (2, 12), False)).plan
    assert (plan.weight_A == 1).all() and len(plan.weight_A) and plan.scale_input


def test_the_contract_holds_for_the_variants() -> None:
    check_method("expert-choice", {"jitter": 0.1, "rounding": "down", "multiple": 4, "min_capacity": 4})
    layer = predicting()
    check_loss(layer.losses[-1], layer.router, dim=DIM)


def test_impossible_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"jitter=1\.5 must be at least 0 and below 1"):
        make_layer(jitter=1.5)
    with pytest.raises(ConfigError, match="'upp'; did you mean 'up'"):
        ExpertChoiceRouter(DIM, N, rounding="upp")
    with pytest.raises(ConfigError, match="'predict'; did you mean 'predictor'"):
        ExpertChoiceRouter(DIM, N, eval_policy="predict")
    with pytest.raises(ConfigError, match="min_capacity=0"):
        make_layer(min_capacity=0)
    with pytest.raises(ConfigError, match="prediction=0"):
        make_layer(eval_policy="predictor", prediction=0.0)
    with pytest.raises(ConfigError, match="predictor_hidden=-1"):
        make_layer(eval_policy="predictor", predictor_hidden=-1)
    with pytest.raises(ConfigError, match="eval_policy='predictor' looks at one token"):
        make_layer(eval_policy="predictor", score_axis="tokens")
    with pytest.raises(ConfigError, match="needs a router that predicts picks"):
        SelectionLoss(1.0).compute(
            route(make_layer(), torch.zeros(1, 3, DIM).double()), ForwardContext().layer(0, (1, 3), True)
        )
