"""Fewer experts per token: schedules over layers (arXiv 2505.03531) and gating by sensitivity (arXiv 2408.10284)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from intervened import by_token, run
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import (
    FixedRouting,
    ForceTopK,
    Intervention,
    KeepHeaviest,
    SensitivityGate,
    SkipSchedule,
    skip_schedule,
)
from libmoe.core.plan import SparsePlan

EIGHT = {"num_experts": 8, "top_k": 4}


def pairs(plan: SparsePlan) -> list[dict[int, float]]:
    """Of each token, experts and their weights."""
    found: list[dict[int, float]] = [{} for _ in range(plan.num_tokens)]
    for token, expert, weight in zip(plan.token_A.tolist(), plan.expert_A.tolist(), plan.weight_A.tolist()):
        found[token][expert] = weight
    return found


# -- schedules ---------------------------------------------------------------------------------------------


def test_a_schedule_of_what_the_model_has_is_the_model_bit_for_bit(llama: Callable) -> None:
    model = llama(**EIGHT).eval()
    for edit in (SkipSchedule([4, 4]), KeepHeaviest([4, 4], renormalise=True), SkipSchedule([9, 9])):
        assert torch.equal(run(model, edit)[0], run(model)[0])


def test_a_valley_has_exactly_its_lowest_number_in_its_layer() -> None:
    for at in range(1, 13):
        ks = skip_schedule(12, 6, 2, 6, at, most=6)
        assert len(ks) == 12 and ks[at - 1] == 2 == min(ks)
        assert ks[0] == (2 if at == 1 else 6) and ks[-1] == (2 if at == 12 else 6)
        assert list(ks[: at - 1]) == sorted(ks[: at - 1], reverse=True) and list(ks[at:]) == sorted(ks[at:])


@pytest.mark.parametrize(
    ("schedule", "mean"),
    [((6, 6, 6, 5), 6), ((6, 4, 2, 14), 4), ((2, 4, 6, 14), 4), ((2, 6, 2, 14), 4), ((6, 2, 6, 14), 4)],
)
def test_the_mean_is_the_budget_to_rounding(schedule: tuple[int, int, int, int], mean: float) -> None:
    begin, high, end, at = schedule
    ks = skip_schedule(27, begin, high, end, at, most=6)
    exact = [
        begin + (high - begin) * (i - 1) / (at - 1) if i <= at else high + (end - high) * (i - at) / (27 - at)
        for i in range(1, 28)
    ]
    assert ks == tuple(round(x) for x in exact)
    assert abs(sum(ks) / 27 - mean) < 0.5


def test_schedules_are_clamped_to_what_the_router_can_do() -> None:
    assert skip_schedule(3, 8, 0, 8, 2, most=6) == (6, 1, 6)
    assert skip_schedule(1, 3, 2, 3, 1, most=6) == (2,)


def test_each_layer_uses_its_best_experts_as_it_weighs_them(llama: Callable) -> None:
    model = llama(layers=3, **EIGHT).eval()
    _, plans = run(model, SkipSchedule([4, 2, 1]))
    assert [plans[i].k for i in range(3)] == [4, 2, 1]
    torch.testing.assert_close(plans[1].weight_A.view(-1, 2).sum(1), torch.ones(14))
    _, all_four = run(model)
    assert [experts[:4] for experts in by_token(all_four[0])] == by_token(plans[0])
    plain = run(llama(renormalise=False, **EIGHT).eval(), SkipSchedule([2, 2]))[1][0]
    assert (plain.weight_A.view(-1, 2).sum(1) < 0.95).any()  # the scale of the output shrinks


@pytest.mark.parametrize("renormalise", [True, False])
def test_keeping_the_heaviest_is_the_schedule_where_the_best_are_the_heaviest(
    llama: Callable, renormalise: bool
) -> None:
    model = llama(renormalise=renormalise, **EIGHT).eval()
    by_k, _ = run(model, SkipSchedule([2, 3]))
    by_weight, plans = run(model, KeepHeaviest([2, 3], renormalise=renormalise))
    torch.testing.assert_close(by_weight, by_k)
    assert [len(found) for found in pairs(plans[0])] == [2] * 14


# -- gating by sensitivity ---------------------------------------------------------------------------------


def gated(plan: SparsePlan, sensitivity: float, threshold: float) -> list[dict[int, float]]:
    """The rule, token by token."""
    found = []
    for experts in pairs(plan):
        total, dropped = sum(experts.values()), 0.0
        left = dict(experts)
        for expert in sorted(experts, key=experts.get)[:-1]:
            dropped += experts[expert]
            if (dropped / total) ** 2 * sensitivity > threshold:
                break
            del left[expert]
        scale = total / sum(left.values())
        found.append({expert: weight * scale for expert, weight in left.items()})
    return found


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_k": 4}, {"top_k": 4, "renormalise": False}], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05, 0.2, 10.0])
def test_the_gate_drops_the_lightest_experts_while_the_rule_holds(
    llama: Callable, options: dict, threshold: float
) -> None:
    model = llama(num_experts=8, **options).eval()
    _, plans = run(model)
    _, edited = run(model, SensitivityGate({0: 0.5}, threshold))
    expected = gated(plans[0], 0.5, threshold)
    for found, wanted in zip(pairs(edited[0]), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    assert by_token(edited[1]) and edited[1].k == options["top_k"]  # the other layer is not edited


def test_threshold_zero_is_the_model_and_infinity_its_best_expert_alone(llama: Callable) -> None:
    model = llama().eval()
    assert torch.equal(run(model, SensitivityGate({0: 1.0, 1: 1.0}, 0.0))[0], run(model)[0])
    single, plans = run(model, SensitivityGate({0: 1.0, 1: 1.0}, math.inf))
    assert all(list(found.values()) == pytest.approx([1.0]) for found in pairs(plans[0]))
    torch.testing.assert_close(single, run(model, ForceTopK(1))[0])


def test_active_experts_never_rise_with_the_threshold(llama: Callable) -> None:
    model = llama(layers=1, **EIGHT).eval()
    counts = [len(run(model, SensitivityGate({0: 2.0}, t))[1][0].token_A) for t in (0, 0.01, 0.02, 0.1, 0.3, 1, 5)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 56 and counts[-1] == 14


@pytest.mark.parametrize(("sensitivity", "left"), [(0.1, 1), (1.0, 2)])
def test_a_second_weight_of_a_fifth_goes_in_a_robust_layer_and_stays_in_a_sensitive_one(
    llama: Callable, sensitivity: float, left: int
) -> None:
    """T = 0.005: thresholds on the weight of sqrt(0.05) = 0.2236 and 0.0707."""

    settled = FixedRouting([2, 0], weights=[0.8, 0.2])
    _, plans = run(llama(layers=1).eval(), settled, SensitivityGate({0: sensitivity}, 0.005))
    assert pairs(plans[0]) == [pytest.approx({2: 1.0} if left == 1 else {2: 0.8, 0: 0.2})] * 14


def test_a_prompt_keeps_its_experts_where_only_decoding_is_gated(llama: Callable) -> None:
    edit, model = SensitivityGate({0: 1.0, 1: 1.0}, math.inf, decode_only=True), llama().eval()
    assert torch.equal(run(model, edit)[0], run(model)[0])
    one_token = torch.tensor([[7]])
    assert len(run(model, edit, ids=one_token)[1][0].token_A) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipSchedule([]), r"each layer needs at least 1 expert"),
        (lambda: KeepHeaviest([2, 0], renormalise=True), r"ks=\[2, 0\]: each layer needs at least 1 expert"),
        (lambda: skip_schedule(4, 2, 2, 2, 5, most=2), r"at=5 must be one of the layers 1 to 4"),
        (lambda: SensitivityGate({0: 1.0}, -1.0), r"threshold=-1.0 .* at least 0"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused_at_once(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "method", "message"),
    [
        (SkipSchedule([1]), "smoe", r"ks has 1 numbers and the model a layer 1"),
        (SkipSchedule([1, 1]), "soft-moe", r"SkipSchedule cannot edit layer 0: .* plans of kind 'soft'"),
        (SensitivityGate({0: 1.0}, 0.1), "soft-moe", r"SensitivityGate cannot edit layer 0: .* plans of kind 'soft'"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_one_line(
    llama: Callable, edit: Intervention, method: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(llama(method=method).eval(), edit)


def test_a_schedule_is_not_ignored_by_who_does_not_choose_by_k(llama: Callable) -> None:
    with pytest.raises(ConfigError, match="SkipSchedule cannot edit layer 0: its router does not choose the best k"):
        run(llama().eval(), FixedRouting([2, 0]), SkipSchedule([1, 1]))
