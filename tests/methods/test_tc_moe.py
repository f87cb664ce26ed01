"""Defining properties of TC-MoE (Yan et al., ICLR 2025)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.core.site import Site
from libmoe.layers.moe import MoELayer
from libmoe.methods import create

DIM, N = 8, 4  # choices: +E 0..3, -E 4..7, null 8..9


class FixedLogits(nn.Module):
    """The same logits for every token; the router's offsets come on top."""

    def __init__(self, logits_C: Tensor) -> None:
        super().__init__()
        self.logits_C = nn.Parameter(logits_C.double())

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.logits_C.expand(len(x_TD), -1)


def make_layer(logits: dict[int, float] | None = None, **options: object) -> MoELayer:
    """A layer whose logits, offsets included, are ``logits`` (0 where nothing is given)."""
    layer = create("tc-moe", num_experts=N, **options).build_layer(Site(DIM, 16)).double()
    if logits is not None:
        layer.router.offsets = (0.0, 0.0, 0.0)
        logits_C = torch.zeros(2 * N + layer.router.num_null)
        for choice, value in logits.items():
            logits_C[choice] = value
        layer.router.gate = FixedLogits(logits_C)
    return layer


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, DIM, dtype=torch.float64)


def test_weights_divide_by_chosen_experts_and_all_null_choices(x: Tensor) -> None:
    layer = make_layer({1: 3.0, 6: 2.0, 8: 1.0})
    p_C = layer.router.gate.logits_C.detach().softmax(0)
    total = p_C[1] + p_C[6] + p_C[8] + p_C[9]
    expected = (p_C[1] * layer.experts.materialise(1)(x) - p_C[6] * layer.experts.materialise(2)(x)) / total
    torch.testing.assert_close(layer(x), expected)


def test_negative_choice_subtracts_the_same_expert(x: Tensor) -> None:
    plus, minus = make_layer({1: 9.0, 0: 5.0}), make_layer({N + 1: 9.0, N: 5.0})
    minus.experts.load_state_dict(plus.experts.state_dict())
    torch.testing.assert_close(minus(x), -plus(x))


def test_null_choices_cost_no_rows(x: Tensor) -> None:
    layer = make_layer({8: 9.0, 9: 8.0})
    routing = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (2, 5), True))
    assert routing.plan.segments.bounds[-1] == 0
    assert torch.equal(layer(x), torch.zeros_like(x))
    one_null = make_layer({8: 9.0, 2: 8.0})
    routing = one_null.route(x.flatten(0, 1), ForwardContext().layer(0, (2, 5), True))
    assert routing.plan.segments.bounds[-1] == 10  # one expert per token instead of two


def test_both_signs_of_an_expert_run_it_once(x: Tensor) -> None:
    layer = make_layer({1: 3.0, N + 1: 2.0})
    routing = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (2, 5), True))
    assert routing.plan.segments.bounds[-1] == 10
    p_C = layer.router.gate.logits_C.detach().softmax(0)
    weight = (p_C[1] - p_C[N + 1]) / (p_C[1] + p_C[N + 1] + p_C[8] + p_C[9])
    torch.testing.assert_close(layer(x), weight * layer.experts.materialise(1)(x))


def test_choices_share_the_parameters_of_their_expert() -> None:
    layer = make_layer()
    assert layer.experts.num_experts == N
    assert layer.router.gate.weight.shape == (2 * N + 2, DIM)


def test_offsets_start_training_near_plain_top_k(x: Tensor) -> None:
    layer = make_layer()
    p_TC = layer.router.logits(x.flatten(0, 1)).softmax(-1)
    assert p_TC[:, 2 * N :].sum(1).max() < 1e-3
    assert (p_TC[:, :N].sum(1) > 2 * p_TC[:, N : 2 * N].sum(1)).all()


def test_router_gets_gradients_through_signs_and_null(x: Tensor) -> None:
    layer = make_layer({1: 2.0, 6: 1.5, 8: 0.5})
    layer(x).square().sum().backward()
    grad_C = layer.router.gate.logits_C.grad
    assert grad_C[[1, 6, 8, 9]].abs().min() > 0  # null choices act through the denominator


def test_balance_is_one_when_signed_loads_are_equal_and_null_does_not_count() -> None:
    """One token of the sequence for each expert, by turns added and subtracted, all with a null beside it."""
    layer = make_layer(balance=1.0).train()
    layer.router.offsets = (0.0, 0.0, 0.0)

    class OneEach(nn.Module):
        def forward(self, x_TD: Tensor) -> Tensor:
            logits_TC = torch.zeros(N, 2 * N + 2, dtype=torch.float64)
            for t in range(N):
                logits_TC[t, t + N * (t % 2)] = 9.0
            logits_TC[:, 2 * N] = 8.0
            return logits_TC

    layer.router.gate = OneEach()
    ctx = ForwardContext().layer(0, (1, N), True)
    routing = layer.route(torch.zeros(N, DIM, dtype=torch.float64), ctx)
    numerator, denominator = layer.losses[0].compute(routing, ctx)
    assert (numerator / denominator).item() == pytest.approx(1.0)
    torch.testing.assert_close(routing.scores_TN.sum(1), torch.ones(N, dtype=torch.float64))


def test_reward_raises_the_probability_of_null(x: Tensor) -> None:
    layer = make_layer({0: 1.0}, reward=1.0, balance=0.0).train()
    (0 * layer(x)).sum().backward()  # the reward alone, attached to the graph
    grad_C = layer.router.gate.logits_C.grad
    assert (grad_C[2 * N :] < 0).all()
    assert (grad_C[: 2 * N] > 0).all()


def test_reward_lowers_the_rows_that_a_trained_router_asks_for() -> None:
    rows = {}
    for reward in (0.0, 1.0):
        torch.manual_seed(0)
        layer = (
            create("tc-moe", num_experts=N, null_offset=-1.0, reward=reward)
            .build_layer(Site(DIM, 16))
            .train()
        )
        optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.01)
        for _ in range(60):
            x = torch.randn(1, 64, DIM)
            optimizer.zero_grad()
            (0 * layer(x)).sum().backward()
            optimizer.step()
        routing = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (1, 64), True))
        rows[reward] = routing.plan.segments.bounds[-1] / 64
    assert rows[1.0] < 0.7 * rows[0.0]


def test_banned_expert_is_used_with_neither_sign(x: Tensor) -> None:
    layer = make_layer({1: 3.0, N + 1: 2.0, 0: 1.0, 2: 0.5}).eval()
    with context.options(interventions=[BanExperts([1])]):
        routing = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (2, 5), False))
    assert set(routing.plan.expert_A.tolist()) == {0, 2}


def test_negative_number_of_null_choices_is_refused() -> None:
    with pytest.raises(ConfigError, match="null_choices must not be negative, got -1"):
        create("tc-moe", null_choices=-1).build_layer(Site(DIM, 16))
