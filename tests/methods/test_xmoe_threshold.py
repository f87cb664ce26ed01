"""Defining properties of XMoE's threshold router over small experts (arXiv 2403.18926)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import MoELayer
from libmoe.losses import FirstChoiceBalanceLoss
from libmoe.methods import create
from libmoe.routers import TopPRouter
from libmoe.routers.capacity import keep_best

T, N, DIM = 50, 16, 12


def plan_of(logits_TN: Tensor, threshold: float = 0.9) -> SparsePlan:
    router = TopPRouter(N, logits_TN.shape[1], threshold=threshold, reach=True, gate=nn.Identity())
    return router(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), False)).plan


def mask_of(logits_TN: Tensor, threshold: float = 0.9) -> Tensor:
    plan = plan_of(logits_TN, threshold)
    mask_TN = torch.zeros(logits_TN.shape, dtype=torch.bool)
    mask_TN[plan.token_A, plan.expert_A] = True
    return mask_TN


@pytest.fixture
def logits_TN() -> Tensor:
    return 2 * torch.randn(T, N, dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.999])
def test_the_chosen_mass_reaches_the_threshold_and_would_not_without_the_last(
    logits_TN: Tensor, threshold: float
) -> None:
    p_TN, mask_TN = logits_TN.softmax(1), mask_of(logits_TN, threshold)
    mass_T = (p_TN * mask_TN).sum(1)
    least_T = p_TN.masked_fill(~mask_TN, torch.inf).amin(1)
    assert (mass_T >= threshold).all() and (mass_T - least_T < threshold).all()


def test_threshold_zero_is_top_1_and_one_takes_all(logits_TN: Tensor) -> None:
    plan = plan_of(logits_TN, 0.0)
    assert torch.equal(plan.expert_A, logits_TN.argmax(1))
    for threshold in (1.0, 1.0 + 1e-6):
        assert mask_of(30 * logits_TN, threshold).all()  # probabilities that underflow among them


def test_a_lower_threshold_chooses_a_subset(logits_TN: Tensor) -> None:
    masks = [mask_of(logits_TN, t) for t in (0.0, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0)]
    assert all((fewer & ~more).sum() == 0 for fewer, more in pairwise(masks))
    assert masks[0].sum() < masks[3].sum() < masks[-1].sum()


@pytest.mark.parametrize(("threshold", "experts"), [(0.9, 58), (0.3, 20), (0.5, 32), (0.01, 1)])
def test_equal_logits_choose_the_ceiling_of_t_n(threshold: float, experts: int) -> None:
    assert experts == math.ceil(threshold * 64)
    assert plan_of(torch.zeros(3, 64), threshold).experts_per_token().tolist() == [experts] * 3


def layer(**more: object) -> MoELayer:
    options = {"num_experts": 16, "top_k": 4, **more}
    made = create("xmoe-threshold", options).build_layer(Site(DIM, 16, "gelu", False, True, init_std=0.5)).double()
    with torch.no_grad():
        made.router.gate.weight.normal_(std=0.7)
    return made


def test_slices_of_one_ffn_under_equal_probabilities_give_a_share_of_its_output() -> None:
    """No renormalisation: N slices with weight 1 / N each."""
    made = layer(num_experts=4, top_k=4, threshold=1.0).eval()
    ffn = FFN(DIM, 16, "gelu", False, True, init_std=0.5).double()
    with torch.no_grad():
        made.router.gate.weight.zero_()
        for e in range(4):
            rows = slice(4 * e, 4 * e + 4)
            made.experts.w_in[e], made.experts.b_in[e] = ffn.w_in[rows], ffn.b_in[rows]
            made.experts.w_out[e], made.experts.b_out[e] = ffn.w_out[:, rows], ffn.b_out / 4
    x = torch.randn(1, 9, DIM, dtype=torch.float64)
    torch.testing.assert_close(made(x), ffn(x) / 4)


def importance(mask_TN: Tensor, p_TN: Tensor) -> Tensor:
    """The published priority ``(K - rank) + p``, with K = N."""
    rank_TN = (p_TN.unsqueeze(1) > p_TN.unsqueeze(2)).sum(2)
    return torch.where(mask_TN, p_TN.shape[1] - rank_TN + p_TN, 0.0)


@pytest.mark.parametrize("slots", [1, 5, 20, T])
def test_experts_keep_within_capacity_the_most_important_requests(logits_TN: Tensor, slots: int) -> None:
    p_TN, mask_TN = logits_TN.softmax(1), mask_of(logits_TN)
    kept_TN = keep_best(mask_TN, p_TN, slots)
    value_TN = importance(mask_TN, p_TN)
    for e in range(N):
        asked, kept = mask_TN[:, e], kept_TN[:, e]
        assert kept.sum() == min(slots, int(asked.sum())) and not (kept & ~asked).any()
        dropped = asked & ~kept
        if dropped.any():
            assert value_TN[kept, e].min() > value_TN[dropped, e].max()


def test_padding_takes_no_place(logits_TN: Tensor) -> None:
    p_TN, mask_TN = logits_TN.softmax(1), mask_of(logits_TN)
    real_T = torch.arange(T) % 3 > 0
    kept_TN = keep_best(mask_TN, p_TN, 4, real_T)
    assert not kept_TN[~real_T].any()
    assert torch.equal(kept_TN[real_T], keep_best(mask_TN[real_T], p_TN[real_T], 4))


def test_permuting_tokens_permutes_outputs_where_capacity_binds() -> None:
    made = layer().train()
    x_TD = torch.randn(60, DIM, dtype=torch.float64)
    order = torch.randperm(60)
    plan = made.route(x_TD, ForwardContext().layer(0, (1, 60), True)).plan
    assert plan.kept_A is not None and 0.2 < (~plan.kept_A).double().mean() < 0.8
    torch.testing.assert_close(made(x_TD[order].unsqueeze(0))[0], made(x_TD.unsqueeze(0))[0, order])


def test_a_layer_computes_at_most_k_experts_for_each_token() -> None:
    """64 thin experts of which 58 are wanted at first: the capacity leaves 8, the width of one FFN."""
    made = create("xmoe-threshold").build_layer(Site(DIM, 64)).train()
    assert (made.router.num_experts, made.experts.hidden) == (64, 8)
    routing = made.route(torch.randn(512, DIM), ForwardContext().layer(0, (1, 512), True))
    assert routing.plan.experts_per_token().double().mean() <= 8
    assert len(routing.plan.token_A) / 512 > 50
    assert routing.plan.segments.bounds[-1] <= 8 * 512
    assert sum(made.router.expected_load()) == 8
    few = made.route(torch.randn(2, DIM), ForwardContext().layer(0, (1, 2), True)).plan
    assert few.kept_A is None or few.kept_A.all()  # never fewer than 4 places


def test_a_token_whose_requests_are_all_dropped_outputs_zero() -> None:
    made = layer(num_experts=2, top_k=2, threshold=0.0, min_capacity=0, capacity_factor=0.1).train()
    with torch.no_grad():
        made.router.gate.weight.zero_()
        made.router.gate.weight[0, 0] = 1.0
    x_TD = torch.randn(8, DIM, dtype=torch.float64).abs()
    y_TD = made(x_TD.unsqueeze(0))[0]
    served = y_TD.abs().sum(1) > 0
    assert served.sum() == 1 and served[x_TD[:, 0].argmax()]


def test_outside_training_nothing_is_dropped_unless_asked_for() -> None:
    x_TD = torch.randn(60, DIM, dtype=torch.float64)
    assert layer().eval().route(x_TD, ForwardContext().layer(0, (1, 60), False)).plan.kept_A is None
    router = layer(eval_capacity_factor=1.0).router
    assert not router.causal and not router.batch_independent


def test_the_balance_loss_sees_first_choices_alone(logits_TN: Tensor) -> None:
    def parts(logits_TN: Tensor) -> tuple[float, Tensor, Tensor]:
        p_TN = logits_TN.softmax(1)
        routing = Routing(plan_of(logits_TN), logits_TN, p_TN)
        ctx = ForwardContext().layer(0, (1, T), True)
        numerator, denominator = FirstChoiceBalanceLoss(1.0, "micro_batch").compute(routing, ctx)
        first_N = torch.bincount(p_TN.argmax(1), minlength=N).double() / T
        return (numerator / denominator).item(), first_N, p_TN.mean(0)

    value, first_N, mean_N = parts(logits_TN)
    assert value == pytest.approx((N * first_N * mean_N).sum().item())
    # Other probabilities, other sets, but the same first choices: only the mean of probabilities moves.
    best_TN = torch.nn.functional.one_hot(logits_TN.argmax(1), N).bool()
    changed, same_N, moved_N = parts(torch.where(best_TN, logits_TN, logits_TN - 2 * torch.rand(T, N)))
    assert torch.equal(same_N, first_N) and not torch.allclose(moved_N, mean_N)
    assert changed == pytest.approx((N * first_N * moved_N).sum().item())


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k=65 must be between 1 and num_experts=64"):
        create("xmoe-threshold", top_k=65)
    with pytest.raises(ConfigError, match=r"capacity_factor=0\.0 must be greater than 0"):
        create("xmoe-threshold", capacity_factor=0.0)
