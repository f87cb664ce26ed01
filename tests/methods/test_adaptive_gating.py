"""Defining properties of adaptive gating (arXiv 2310.07188): the gate, its loss, its cost and its curriculum."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import libmoe
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.data.curriculum import CurriculumLoader, complexity_order
from libmoe.losses import BalanceLoss, FirstChoiceBalanceLoss, LoneChoiceBalanceLoss, Loss
from libmoe.methods import create
from libmoe.routers import GapRouter, TopKRouter
from libmoe.testing import check_loss
from libmoe.train.curriculum import several_share

N, T = 8, 60


def routing(logits_TN: Tensor, threshold: float = 0.1, **more: Any) -> Routing:
    router = GapRouter(N, N, threshold=threshold, gate=nn.Identity(), **more)
    return router(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), False))


def counts(logits_TN: Tensor, threshold: float = 0.1, **more: Any) -> Tensor:
    plan = routing(logits_TN, threshold, **more).plan
    assert isinstance(plan, SparsePlan)
    return plan.experts_per_token()


def value(loss: Loss, found: Routing) -> Tensor:
    tokens = found.plan.num_tokens
    numerator, denominator = loss.compute(found, ForwardContext().layer(0, (1, tokens), True))
    return numerator / denominator


@pytest.fixture
def logits_TN() -> Tensor:
    return 2 * torch.randn(T, N, dtype=torch.float64)


def test_from_top_1_to_top_2_as_the_threshold_grows(logits_TN: Tensor) -> None:
    p_TN = logits_TN.softmax(1)
    one, two = routing(logits_TN, -1e-9).plan, routing(logits_TN, 1.0).plan
    assert torch.equal(one.expert_A, p_TN.argmax(1))
    assert torch.equal(two.expert_A.view(T, 2).sort(1).values, p_TN.topk(2).indices.sort(1).values)
    for fewer, more in pairwise([counts(logits_TN, t) for t in (-0.1, 0.0, 0.1, 0.3, 0.6, 1.0)]):
        assert (more >= fewer).all()
    first_T2 = p_TN.topk(2).values
    assert torch.equal(counts(logits_TN, 0.3) == 2, first_T2[:, 0] - first_T2[:, 1] <= 0.3)


def test_the_decision_depends_on_the_difference_of_two_probabilities(logits_TN: Tensor) -> None:
    shift_T1 = 5 * torch.randn(T, 1, dtype=torch.float64)
    assert torch.equal(counts(logits_TN + shift_T1), counts(logits_TN))
    assert 0 < (counts(logits_TN) == 2).sum() < T
    assert (counts(1e6 * logits_TN) == 1).all() and (counts(1e-6 * logits_TN) == 2).all()
    # Moving mass among all other experts changes nothing.
    third = logits_TN.topk(4).indices[:, 2:]
    even_T1 = logits_TN.gather(1, third).logsumexp(1, keepdim=True) - np.log(2)
    assert torch.equal(counts(logits_TN.scatter(1, third, even_T1.expand(T, 2))), counts(logits_TN))


def test_the_ratio_does_not_depend_on_the_number_of_experts() -> None:
    pair_T2 = torch.tensor([[1.0, 0.95], [1.0, 0.5]], dtype=torch.float64)
    for others, by_difference in ((0.01, [2, 1]), (0.4, [2, 2])):  # many others make all differences small
        rest_TM = torch.full((2, N - 2), others, dtype=torch.float64)
        logits_TN = torch.cat([pair_T2, rest_TM], 1).log()
        assert counts(logits_TN, 0.15).tolist() == by_difference
        assert counts(logits_TN, 0.15, compare="ratio").tolist() == [2, 1]


@pytest.mark.parametrize("renormalise", ["several", "none", "all"])
def test_weights_of_one_and_of_two_experts(logits_TN: Tensor, renormalise: str) -> None:
    found = routing(logits_TN, renormalise=renormalise)
    plan, p_TN = found.plan, logits_TN.softmax(1)
    for token in range(T):
        on_A = plan.token_A == token
        p = p_TN[token, plan.expert_A[on_A]]
        divide = renormalise == "all" or (renormalise == "several" and len(p) == 2)
        torch.testing.assert_close(plan.weight_A[on_A], p / p.sum() if divide else p)


def test_the_loss_counts_single_experts_and_averages_all_probabilities(logits_TN: Tensor) -> None:
    found = routing(logits_TN)
    p_TN, lone_T = logits_TN.softmax(1), counts(logits_TN) == 1
    f_N = torch.bincount(p_TN[lone_T].argmax(1), minlength=N).double() / lone_T.sum()
    torch.testing.assert_close(value(LoneChoiceBalanceLoss(1.0, "micro_batch"), found), N * (f_N * p_TN.mean(0)).sum())


def test_the_loss_is_nothing_for_pairs_alone_and_that_of_switch_for_single_experts(logits_TN: Tensor) -> None:
    loss = LoneChoiceBalanceLoss(1.0, "micro_batch")
    assert value(loss, routing(logits_TN, 1.0)).item() == 0
    switch = TopKRouter(N, N, 1, renormalise=False, gate=nn.Identity())
    expected = value(BalanceLoss(1.0, "micro_batch"), switch(logits_TN, ForwardContext().layer(0, (1, T), False)))
    torch.testing.assert_close(value(loss, routing(logits_TN, -1.0)), expected)


def test_the_gradient_of_the_loss_reaches_every_token_and_not_the_choice(logits_TN: Tensor) -> None:
    leaf_TN = logits_TN.clone().requires_grad_()
    found = routing(leaf_TN)
    value(LoneChoiceBalanceLoss(1.0, "micro_batch"), found).backward()
    p_TN, lone_T = logits_TN.softmax(1), counts(logits_TN) == 1
    f_N = torch.bincount(p_TN[lone_T].argmax(1), minlength=N).double() / lone_T.sum()
    closed = N / T * p_TN * (f_N - (p_TN * f_N).sum(1, keepdim=True))  # f held fixed
    torch.testing.assert_close(leaf_TN.grad, closed)
    assert (leaf_TN.grad.abs().amax(1) > 0).all() and not lone_T.all()


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
@pytest.mark.parametrize("loss", [LoneChoiceBalanceLoss, FirstChoiceBalanceLoss])
def test_losses_of_a_part_of_the_choices_keep_the_contract(loss: type[Loss], scope: Any) -> None:
    router = GapRouter(16, 4, threshold=0.01)
    check_loss(loss(0.1, scope), router.double(), at_balance=1.0)


def test_cost_is_one_expert_and_the_share_of_second_ones() -> None:
    """With a share of 0.2 a token costs 1.2 experts, 0.6 of top-2."""
    layer = create("adaptive-gating", num_experts=N, second_share=0.2).build_layer(Site(16, 32))
    flops = layer.experts.flops_per_row()
    expected = sum(load * cost for load, cost in zip(layer.router.expected_load(), flops, strict=True))
    assert expected == pytest.approx(0.6 * 2 * flops[0])
    # What really runs: 10 tokens of which 2 are undecided.
    logits_TN = torch.full((10, N), -20.0)
    logits_TN[:, 0], logits_TN[8:, 1] = 5.0, 5.0
    plan = routing(logits_TN).plan
    assert len(plan.segments.slice(0, N)[0].bounds) == N + 1 and plan.segments.bounds[-1] == 12


def test_the_curriculum_begins_with_the_easiest_and_goes_on_by_likeness() -> None:
    share_SL = np.array([[0.4, 0.8], [0.3, 0.1], [0.06, 0.02], [0.9, 0.3], [0.2, 0.4], [0.5, 0.5]])
    order = complexity_order(share_SL)
    assert order[0] == 2  # least in sum
    assert sorted(order) == list(range(6))
    unit_SL = share_SL / np.linalg.norm(share_SL, axis=1, keepdims=True)
    assert (np.diff((unit_SL @ unit_SL[2])[order]) <= 1e-12).all()
    assert order.tolist() == [2, 1, 3, 5, 0, 4]  # rows 1 and 3, 0 and 4 point the same way and keep their order


def test_rows_without_second_experts_are_no_division_by_zero() -> None:
    order = complexity_order([[0.5, 0.0], [0.0, 0.0], [0.3, 0.3], [0.0, 0.0]])
    assert order.tolist() == [1, 2, 3, 0]
    assert complexity_order(np.zeros((0, 3))).tolist() == []
    with pytest.raises(DataError, match="shares by sample and layer"):
        complexity_order([[0.1, float("nan")]])


class Rows:
    """A loader whose rows are their own numbers."""

    batch_size = 3

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"input_ids": torch.arange(3 * step, 3 * step + 3).unsqueeze(1)}


def measure(batch: Mapping[str, Tensor]) -> np.ndarray:
    return np.stack([(batch["input_ids"][:, 0] % 4 / 4).numpy(), np.full(3, 0.5)], 1)


def test_each_pool_deals_out_its_rows_once_in_order_and_resumes() -> None:
    def rows(loader: CurriculumLoader, step: int) -> list[int]:
        return loader.batch(step)["input_ids"][:, 0].tolist()

    loader = CurriculumLoader(Rows(), 4, measure)
    first = [row for step in range(4) for row in rows(loader, step)]
    assert sorted(first) == list(range(12))
    assert [row % 4 for row in first] == sorted(row % 4 for row in range(12))
    resumed = CurriculumLoader(Rows(), 4, lambda batch: pytest.fail("the order is known"))
    resumed.load_state_dict(loader.state_dict())
    assert rows(resumed, 2) == first[6:9]
    assert sorted(row for step in range(4, 8) for row in rows(loader, step)) == list(range(12, 24))


def test_a_models_complexity_orders_its_batches_and_evens_out_how_hard_they_are() -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = libmoe.moeify(LlamaForCausalLM(config), "adaptive-gating", options={"router_init_scale": 25.0}, seed=0)
    seen: list[tuple[int, Tensor]] = []

    class Text:
        batch_size = 4

        def batch(self, step: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(step)
            most_B1 = torch.randint(2, 40, (4, 1), generator=generator)
            return {"input_ids": (torch.rand(4, 16, generator=generator) * most_B1).long()}

    loader = Text()
    model.train()
    share_BL = several_share(model, loader.batch(0))
    assert model.training
    with torch.no_grad(), options(recorders=[lambda ctx, r: seen.append((ctx.index, r.plan.experts_per_token()))]):
        model.eval()(input_ids=loader.batch(0)["input_ids"])
    for index, count_T in seen:
        np.testing.assert_allclose(share_BL[:, index], (count_T.view(4, 16) == 2).double().mean(1))

    def shares(loader: Any) -> np.ndarray:
        return np.stack([several_share(model, loader.batch(step)) for step in range(16)])

    plain = shares(loader)
    ordered = shares(CurriculumLoader(loader, 16, lambda batch: several_share(model, batch)))
    assert 0.2 < plain.mean() < 0.5 and ordered.mean() == pytest.approx(plain.mean())
    assert ordered.std(axis=1).mean() < 0.9 * plain.std(axis=1).mean()  # rows of a batch are alike
    assert ordered.max(axis=1).sum() < plain.max(axis=1).sum()  # what a batch waits for: its hardest row


def test_what_makes_no_sense_is_one_line() -> None:
    with pytest.raises(ConfigError, match="did you mean 'difference'"):
        create("adaptive-gating", compare="differences").build_layer(Site(8, 8))
    with pytest.raises(ConfigError, match=r"second_share=1.5 is a share"):
        create("adaptive-gating", second_share=1.5)
    with pytest.raises(ConfigError, match="use 'sequence' or 'micro_batch'"):
        create("adaptive-gating", balance_scope="rank").build_layer(Site(8, 8))
    with pytest.raises(ConfigError, match="period=0"):
        CurriculumLoader(Rows(), 0, measure)
