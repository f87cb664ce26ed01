"""Grids of real digits (MNIST's in arXiv 2306.04073): routing of patches against a convolutional network."""

from __future__ import annotations

import pytest
import torch

from libmoe.theory.digit_grid import FILTERS, PLACES, TELLING, DigitGrids, claims, experiment
from libmoe.theory.patch_pattern import keeps, network, train_experts, train_router


def which(task: DigitGrids, x: torch.Tensor) -> torch.Tensor:
    """The row of each patch among all digits: ``[B, 16]``."""
    return torch.cdist(x.flatten(0, 1), task.x_IP).argmin(1).view(len(x), PLACES)


def test_one_digit_tells_the_label_and_the_others_tell_nothing() -> None:
    task = DigitGrids(0)
    x, y, place = task.draw(300)
    digit_BN = task.digit_I[which(task, x)]
    told = digit_BN[torch.arange(300), place]
    assert torch.equal(told, torch.where(y > 0, TELLING[0], TELLING[1]))
    telling = (digit_BN == TELLING[0]) | (digit_BN == TELLING[1])
    assert (telling.sum(1) == 1).all()
    assert place.unique().numel() == PLACES and 100 < int((y > 0).sum()) < 200


def test_digits_of_training_are_not_among_those_of_testing() -> None:
    task = DigitGrids(0)
    rows = {part: torch.cat(task.pools[part]) for part in ("train", "test")}
    assert torch.cat(list(rows.values())).sort().values.tolist() == list(range(1797))
    for part in rows:
        assert set(which(task, task.draw(50, part)[0]).flatten().tolist()) <= set(rows[part].tolist())


def test_the_same_seed_gives_the_same_images_and_another_other_ones() -> None:
    first, again, other = (DigitGrids(seed).draw(5)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_all_networks_have_as_many_filters() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, FILTERS, PLACES), (2, FILTERS // 2, 2), (8, FILTERS // 8, 6))
    sizes = {network(*shape, g, PLACES).experts.w_in.numel() for shape in shapes}
    assert sizes == {FILTERS * 64}


def test_who_keeps_a_digit_is_who_ranks_it_among_the_best() -> None:
    task = DigitGrids(0)
    x, _, place = task.draw(40)
    layer = network(3, 2, 5, task.generator, PLACES)
    score_BNE = x @ layer.router.gate.weight.T
    above_BE = (score_BNE > score_BNE[torch.arange(40), place].unsqueeze(1)).sum(1)
    assert torch.equal(keeps(layer, x, place), above_BE < 5)


def test_joint_training_teaches_the_router_and_separate_training_freezes_it() -> None:
    task = DigitGrids(0)
    x, y, _ = task.draw(40)
    joint = network(8, 2, 6, task.generator, PLACES, gates="picked")
    separate = network(2, 2, 2, task.generator, PLACES)
    train_router(separate, x, y)
    before = [layer.router.gate.weight.detach().clone() for layer in (joint, separate)]
    for layer in (joint, separate):
        train_experts(layer, 1, x, y, epochs=1, lr=0.5)
    assert not torch.equal(joint.router.gate.weight, before[0])
    assert torch.equal(separate.router.gate.weight, before[1])


def test_with_a_hundred_images_joint_training_is_ahead_by_a_tenth() -> None:
    found = experiment(0, 100, epochs=60)
    assert found.joint - found.plain > 0.1 and found.joint > 0.85 and 0 <= found.hits <= 1


@pytest.mark.slow
def test_separate_training_finds_the_digits_with_more_images() -> None:
    found = {claim.says: claim for claim in claims(range(3), quick=True)}
    assert found["lead of separate training with 200 images"].measured.value > 0.05
    assert found["how often a router keeps its digit, 200 images"].measured.value > 0.4
