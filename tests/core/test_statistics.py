"""Counts of one optimiser step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from libmoe.core.context import options
from libmoe.core.statistics import StepStatistics

IDS = torch.randint(1, 61, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[2, 2:] = 0


def count(model, rows: list[slice], statistics: StepStatistics) -> StepStatistics:
    with torch.no_grad(), options(statistics=statistics):
        for row in rows:
            model(input_ids=IDS[row], attention_mask=MASK[row])
    return statistics


def test_real_tokens_are_counted_over_micro_batches(llama: Callable) -> None:
    model = llama()
    whole = count(model, [slice(0, 4)], StepStatistics())
    parts = count(model, [slice(0, 1), slice(1, 4)], StepStatistics())
    for index in (0, 1):
        assert whole.seen[index].tokens == 20
        assert whole.seen[index].count_N.sum() == 40
        assert torch.equal(parts.seen[index].count_N, whole.seen[index].count_N)
        assert torch.equal(parts.reduced()[index].count_N, whole.seen[index].count_N)


def test_a_counting_pass_fixes_the_counts_and_starts_the_step_afresh(llama: Callable) -> None:
    model, statistics = llama(), StepStatistics()
    count(model, [slice(0, 4)], statistics)  # left over from somewhere
    statistics.begin_counting()
    assert statistics.counting and not statistics.seen
    count(model, [slice(0, 1), slice(1, 4)], statistics)
    statistics.end_counting()
    assert not statistics.seen and not statistics.counting
    for scope in ("rank", "global_batch"):
        assert statistics.exact[scope][1].tokens == 20
    count(model, [slice(0, 1)], statistics)
    assert statistics.exact["rank"][1].tokens == 20  # the real pass does not add to it
    assert statistics.seen[1].tokens == 6
    statistics.reset()
    assert not (statistics.seen or statistics.exact or statistics.losses)


def test_losses_are_summed_with_their_denominators(llama: Callable) -> None:
    model, statistics = llama(z_loss=0.1), StepStatistics()
    with options(statistics=statistics):
        for row in (slice(0, 2), slice(2, 4)):
            model(input_ids=IDS[row], attention_mask=MASK[row])
    assert set(statistics.losses) == {(i, name) for i in (0, 1) for name in ("balance", "z")}
    for numerator, denominator in statistics.losses.values():
        assert denominator == 20
        assert not numerator.requires_grad
    assert 1.0 <= statistics.losses[0, "balance"][0] / 20 < 2.0


def test_counts_hold_no_graph(llama: Callable) -> None:
    statistics = StepStatistics()
    with options(statistics=statistics):
        llama()(IDS)
    assert not statistics.seen[0].count_N.requires_grad


def test_further_sums_are_gathered_by_layer_and_forgotten_with_the_counting_pass() -> None:
    statistics = StepStatistics()
    for value in (1.0, 2.0):
        statistics.add_sum(1, "inputs", torch.full((3,), value, requires_grad=True))
        statistics.add_sum(0, "inputs", torch.full((2,), value))
        statistics.add_sum(0, "others", torch.ones(1))
    found = statistics.reduced_sums("inputs")
    assert {layer: value.tolist() for layer, value in found.items()} == {0: [3.0, 3.0], 1: [3.0, 3.0, 3.0]}
    assert not found[1].requires_grad
    statistics.begin_counting()
    statistics.add_sum(0, "inputs", torch.ones(2))
    statistics.end_counting()
    assert not statistics.sums
    statistics.add_sum(0, "inputs", torch.ones(2))
    statistics.reset()
    assert not statistics.reduced_sums("inputs")


def test_mean_losses_are_numerators_over_denominators() -> None:
    statistics = StepStatistics()
    for numerator, denominator in ((3.0, 2.0), (5.0, 2.0)):
        statistics.add_loss(0, "z", torch.tensor(numerator), torch.tensor(denominator))
    statistics.add_loss(1, "z", torch.tensor(1.0), torch.tensor(4.0))
    assert statistics.mean_losses() == {(0, "z"): 2.0, (1, "z"): 0.25}
    assert StepStatistics().mean_losses() == {}
