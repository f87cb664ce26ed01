"""Patch-level routing keeps the patch that tells the label (arXiv 2306.04073), and so needs fewer samples."""

from __future__ import annotations

import pytest
import torch

from libmoe.theory.patch_pattern import (
    FILTERS,
    KEPT,
    SIDE,
    PatchPatterns,
    alignment,
    claims,
    experiment,
    network,
    train_experts,
    train_router,
)


def test_one_patch_tells_the_label_and_the_others_are_balanced() -> None:
    task = PatchPatterns(0, noise=0.0)
    x, y, place = task.draw(200, paired=True)
    found = x[torch.arange(200), place]
    assert torch.equal(found, task.signs[(y < 0).long()])
    others = x.sum(1) - found
    # But for the one patch of a pair that the telling patch replaced.
    assert float((others[::2] - others[1::2]).norm(dim=1).max()) <= 2
    assert place.unique().numel() > 0.8 * SIDE


def test_the_same_seed_gives_the_same_images_and_another_other_ones() -> None:
    first, again, other = (PatchPatterns(seed).draw(5)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_first_phase_finds_the_patterns_that_tell_the_label() -> None:
    """At once where irrelevant patches are balanced, as the theory has them; else as their sum is outgrown."""
    assert alignment(200, paired=True, noise=0.0) > 0.99
    assert 0.5 < alignment(200) < 0.9 < alignment(4000)


def test_the_second_phase_leaves_the_router_alone() -> None:
    task = PatchPatterns(0)
    x, y, _ = task.draw(60)
    layer = network(2, FILTERS // 2, KEPT, task.generator)
    train_router(layer, x, y)
    before, filters = layer.router.gate.weight.clone(), layer.experts.w_in.detach().clone()
    train_experts(layer, KEPT, x[:20], y[:20])
    assert layer.router.gate.weight.grad is None and torch.equal(layer.router.gate.weight, before)
    assert not torch.equal(layer.experts.w_in, filters)


def test_both_networks_have_as_many_filters() -> None:
    task = PatchPatterns(0)
    plain, routed = network(1, FILTERS, SIDE, task.generator), network(2, FILTERS // 2, KEPT, task.generator)
    assert plain.experts.w_in.numel() == routed.experts.w_in.numel()


def test_with_a_hundred_samples_patch_level_routing_is_ahead_by_a_tenth() -> None:
    found = experiment(seed=0, samples=100)
    assert found.routed - found.plain > 0.1 and found.hits > 0.4  # 4 of 64 patches by chance


@pytest.mark.slow
def test_how_many_samples_it_takes() -> None:
    """Over three seeds: with few samples the routers are wrong, and hide the patch."""
    found = {claim.says: claim for claim in claims(range(3))}
    few = found["its lead with 20, where routers hide the patch"]
    many = found["lead of patch-level routing with 100 samples"]
    assert many.measured.value > 0.1 and many.measured.value > few.measured.value
    assert found["its accuracy with 400"].verdict == "holds"
