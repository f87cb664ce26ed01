"""Steering by a few experts (arXiv 2505.14681): their weights, their logits, or their selection."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from intervened import IDS, by_token, run
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import Between, ForceExperts, Intervention, ScaleExperts, ScaleLogits

PAIRS = [(0, 3), (1, 1)]
# transformers renamed it in 5.24.
CACHE = next(n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters)


def layer_io(model: nn.Module, layer: int, *edits: Intervention) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into an MoE layer and what comes out, ``[T, D]``."""
    seen = []
    handle = model.model.layers[layer].mlp.register_forward_hook(lambda m, a, y: seen.append((a[0], y)))
    run(model, *edits)
    handle.remove()
    (x_BLD, y_BLD) = seen[0]
    return x_BLD.flatten(0, 1), y_BLD.flatten(0, 1)


def alone(model: nn.Module, layer: int, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
    """One expert's output for all tokens, ``[T, D]``."""
    ffn = model.model.layers[layer].mlp.experts.materialise(expert)
    with torch.no_grad():
        return ffn(x_TD)


def test_a_factor_of_one_changes_no_bit(llama: Callable) -> None:
    model = llama().eval()
    assert torch.equal(run(model, ScaleExperts(PAIRS, 1.0))[0], run(model)[0])
    assert torch.equal(run(model, ScaleLogits(PAIRS, 1.0))[0], run(model)[0])


@pytest.mark.parametrize("factor", [0.0, 4.0, 64.0])
def test_the_output_is_linear_in_the_factor_for_tokens_that_choose_the_expert(llama: Callable, factor: float) -> None:
    model = llama().eval()
    x_TD, before_TD = layer_io(model, 0)
    _, after_TD = layer_io(model, 0, ScaleExperts(PAIRS, factor))
    _, plans = run(model)
    output_TD = alone(model, 0, 3, x_TD)
    chose = 0
    for t, experts in enumerate(by_token(plans[0])):
        expected_D = torch.zeros(16)
        if 3 in experts:
            weight = plans[0].weight_A.view(-1, 2)[t, experts.index(3)]
            expected_D, chose = (factor - 1) * weight * output_TD[t], chose + 1
        torch.testing.assert_close(after_TD[t] - before_TD[t], expected_D, rtol=1e-4, atol=1e-5)
    assert 0 < chose < 14


def test_routing_of_the_layer_stays_and_that_of_later_layers_may_change(llama: Callable) -> None:
    model = llama(layers=3).eval()
    _, plans = run(model)
    _, steered = run(model, ScaleExperts([(0, 3)]))
    assert by_token(steered[0]) == by_token(plans[0])
    assert [by_token(steered[i]) for i in (1, 2)] != [by_token(plans[i]) for i in (1, 2)]


def test_renormalised_weights_keep_their_sums(llama: Callable) -> None:
    model = llama(renormalise=False).eval()
    _, plans = run(model)
    _, steered = run(model, ScaleExperts(PAIRS, 8.0, renormalise=True))
    sums = [plan.weight_A.view(-1, 2).sum(1) for plan in (plans[0], steered[0])]
    torch.testing.assert_close(*sums)
    for t, experts in enumerate(by_token(plans[0])):
        before, after = (plan.weight_A.view(-1, 2)[t] for plan in (plans[0], steered[0]))
        if 3 in experts:
            place = experts.index(3)
            torch.testing.assert_close(after[place] / after[1 - place], 8 * before[place] / before[1 - place])
        else:
            assert torch.equal(before, after)


def test_scaled_logits_change_who_is_chosen(llama: Callable) -> None:
    model = llama().eval()
    logits = {}

    def record(ctx, routing) -> None:
        logits[ctx.index] = routing.logits_TN

    with options(recorders=[record]):
        run(model)
    _, steered = run(model, ScaleLogits([(0, 3)], 64.0))
    for t, experts in enumerate(by_token(steered[0])):
        assert (experts[0] == 3) is bool(logits[0][t, 3] > 0) or 64 * logits[0][t, 3] < logits[0][t].max()


def test_forced_experts_are_always_among_the_chosen_and_weighed_by_their_scores(llama: Callable) -> None:
    model = llama(renormalise=False).eval()
    logits, plans, scores = {}, {}, {}

    def record(ctx, routing) -> None:
        plans[ctx.index], scores[ctx.index] = routing.plan, routing.scores_TN

    with torch.no_grad(), options(interventions=[ForceExperts([(0, 3)])], recorders=[record]):
        logits = model(IDS).logits
    assert all(3 in experts for experts in by_token(plans[0]))
    assert not all(3 in experts for experts in by_token(plans[1]))
    expected_TK = scores[0].gather(1, plans[0].expert_A.view(-1, 2))
    torch.testing.assert_close(plans[0].weight_A.view(-1, 2), expected_TK)
    assert not torch.equal(logits, run(model)[0])


def marked(ids: list[list[int]], start: int, end: int) -> list[list[bool]]:
    """Which tokens lie from a start to the next end, by reading one after the other."""
    found = []
    for row in ids:
        inside, flags = False, []
        for token in row:
            inside = inside or token == start
            flags.append(inside)
            inside = inside and token != end
        found.append(flags)
    return found


IN, OUT = 59, 60
TEXT = [[5, IN, 7, 8, OUT, 9, IN, 4], [IN, 3, OUT, OUT, 6, IN, IN, OUT], [1, 2, OUT, 3, 4, 5, 6, 7]]


def changed(model: nn.Module, parts: list[torch.Tensor], where: Between) -> list[list[bool]]:
    """Tokens whose weights are scaled when the parts are read one after the other with a cache."""
    plans, cache, read = [], None, 0
    edits = [ScaleExperts([(0, e) for e in range(4)], 8.0, where=where)]
    with torch.no_grad(), options(interventions=edits, recorders=[lambda ctx, r: plans.append((ctx.index, r.plan))]):
        for ids in parts:
            read += ids.shape[1]
            out = model(ids, attention_mask=torch.ones(len(ids), read).long(), use_cache=True, **{CACHE: cache})
            cache = out[CACHE]
    rows = len(parts[0])
    sums = [plan.weight_A.view(rows, -1, 2).sum(2) for index, plan in plans if index == 0]
    return (torch.cat(sums, 1) > 2).tolist()


@pytest.mark.parametrize("cuts", [[8], [3, 1, 1, 1, 1, 1], [1] * 8, [2, 4, 2]])
def test_only_tokens_between_the_markers_are_steered_also_in_generation(llama: Callable, cuts: list[int]) -> None:
    ids = torch.tensor(TEXT)
    where, model = Between(IN, OUT), llama().eval()
    for _ in range(2):  # a new text begins outside
        assert changed(model, list(ids.split(cuts, 1)), where) == marked(TEXT, IN, OUT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleExperts([]), r"name at least one pair"),
        (lambda: Between(3, 3), r"start and end are the same token 3"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "method", "message"),
    [
        (ScaleExperts([(0, 4)]), "smoe", r"cannot scale expert 4: layer 0 has experts 0\.\.3"),
        (ScaleExperts([(0, 1)]), "soft-moe", r"ScaleExperts cannot edit layer 0: .* plans of kind 'soft'"),
        (ScaleLogits([(0, 1)], 2.0), "hash", r"ScaleLogits cannot edit layer 0: its router has no logits"),
        (ForceExperts([(0, 1), (0, 2), (0, 3)]), "smoe", r"layer 0 leaves out expert . although it is forced"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_one_line(
    llama: Callable, edit: Intervention, method: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(llama(method=method).eval(), edit)
