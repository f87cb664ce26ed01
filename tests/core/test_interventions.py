"""Edits of what routers choose from, and replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intervened import IDS, by_token, run
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, DropTopRanked, ForceTopK, Intervention, ReplayPlans
from libmoe.core.plan import plan_from_tensors


@pytest.mark.parametrize("k", [1, 3, 4])
def test_force_top_k(llama: Callable, k: int) -> None:
    model = llama().eval()
    ranking = by_token(run(model, ForceTopK(4))[1][0])
    plan = run(model, ForceTopK(k))[1][0]
    assert by_token(plan) == [experts[:k] for experts in ranking]
    torch.testing.assert_close(plan.weight_A.view(-1, k).sum(1), torch.ones(14))


def test_only_the_named_layers_are_edited(llama: Callable) -> None:
    _, plans = run(llama(layers=3).eval(), ForceTopK(1, layers=[1]))
    assert [plans[i].k for i in range(3)] == [2, 1, 2]


def test_banned_experts_are_never_used_and_the_next_best_are(llama: Callable) -> None:
    model = llama().eval()
    ranking = by_token(run(model, ForceTopK(4))[1][0])
    plan = run(model, BanExperts([1, 3]))[1][0]
    assert by_token(plan) == [[e for e in experts if e in (0, 2)] for experts in ranking]


def test_dropping_the_top_ranked_uses_the_next_best(llama: Callable) -> None:
    model = llama().eval()
    ranking = by_token(run(model, ForceTopK(4))[1][0])
    assert by_token(run(model, DropTopRanked(1))[1][0]) == [experts[1:3] for experts in ranking]
    assert by_token(run(model, DropTopRanked(3), ForceTopK(1))[1][0]) == [experts[3:] for experts in ranking]


def test_edits_change_nothing_afterwards(llama: Callable) -> None:
    model = llama().eval()
    before = run(model)[0]
    assert not torch.equal(run(model, DropTopRanked(1))[0], before)
    assert torch.equal(run(model)[0], before)


def test_replay_gives_exactly_the_recorded_logits(llama: Callable) -> None:
    model = llama().eval()
    logits, plans = run(model, DropTopRanked(1))
    stored = {index: plan_from_tensors(plan.to_tensors()) for index, plan in plans.items()}
    assert torch.equal(run(model, ReplayPlans(stored))[0], logits)
    assert not torch.equal(run(model)[0], logits)


def test_replaying_some_layers_leaves_the_others_to_their_routers(llama: Callable) -> None:
    model = llama().eval()
    _, dropped = run(model, DropTopRanked(1))
    _, plans = run(model, ReplayPlans({1: dropped[1]}))
    assert by_token(plans[1]) == by_token(dropped[1])
    assert by_token(plans[0]) == by_token(run(model)[1][0])


def test_replay_is_refused_for_another_batch_or_model(llama: Callable) -> None:
    model = llama().eval()
    _, plans = run(model)
    with pytest.raises(ConfigError, match=r"layer 0 is for 14 tokens, the batch has 7"):
        run(model, ReplayPlans(plans), ids=IDS[:1])
    with pytest.raises(ConfigError, match=r"layer 0 is for 4 experts, the layer has 5"):
        run(llama(num_experts=5).eval(), ReplayPlans(plans))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([ForceTopK(5)], r"cannot force k=5: layer 0 has 4 experts"),
        ([BanExperts([4])], r"cannot ban expert 4: layer 0 has experts 0\.\.3"),
        ([BanExperts([0, 1, 2])], r"layer 0 selects expert . although it is banned"),
        ([DropTopRanked(4)], r"cannot drop the top 4 of 4 experts"),
        ([DropTopRanked(3)], r"cannot drop the top 3 of 4 experts in layer 0: fewer than k are left"),
        ([DropTopRanked(2), ForceTopK(3)], r"fewer than k are left"),
    ],
)
def test_impossible_edits_are_errors_not_silence(llama: Callable, edits: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(llama().eval(), *edits)


@pytest.mark.parametrize(
    ("make", "message"), [(lambda: ForceTopK(0), "k must"), (lambda: DropTopRanked(0), "n must")]
)
def test_numbers_below_one_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_router_that_ranks_no_scores_cannot_obey(llama: Callable) -> None:
    model = llama(method="hash").eval()
    with pytest.raises(ConfigError, match=r"although it is banned|does not"):
        run(model, BanExperts([0, 1, 2]))


def test_an_intervention_of_ones_own(llama: Callable) -> None:
    class Favour(Intervention):
        def edit_scores(self, scores_TN: Tensor, ctx) -> Tensor:
            return scores_TN + torch.eye(4)[3]

    _, plans = run(llama().eval(), Favour(layers=[1]))
    assert all(experts[0] == 3 for experts in by_token(plans[1]))
    assert not all(experts[0] == 3 for experts in by_token(plans[0]))
