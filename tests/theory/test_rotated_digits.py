"""Turned digits (in place of the CIFAR-10-Rotate of arXiv 2208.02813): data without a shortcut, and what was found."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.theory.digits import digits, halves
from libmoe.theory.mixture_of_clusters import fit
from libmoe.theory.rotated_digits import (
    FilterNet,
    claims,
    draw,
    experiment,
    linear,
    mixture,
    turned,
)


def told_by_histogram(straight: np.ndarray, turned: np.ndarray) -> float:
    """Accuracy of a linear classifier that sees pixels in order of their brightness, which no angle changes."""
    order = np.random.default_rng(0).permutation(len(straight))
    parts = []
    for rows in (order[:900], order[900:]):
        x = np.concatenate([straight[rows], turned[rows]]).reshape(2 * len(rows), -1)
        parts.append((np.sort(x, axis=1), np.arange(2).repeat(len(rows))))
    return LogisticRegression(max_iter=200).fit(*parts[0]).score(*parts[1])


def test_both_kinds_are_turned_so_that_blur_tells_nothing() -> None:
    x_KIP, _ = turned()
    assert told_by_histogram(*x_KIP.numpy()) < 0.56
    plain = np.pad(digits()[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    assert told_by_histogram(plain, rotate(plain, 30, axes=(2, 1), reshape=False, order=1)) > 0.9


def test_the_two_kinds_are_thirty_degrees_apart_and_nothing_is_cut_off() -> None:
    x_KIP, _ = turned()
    straight, other = (x - x.min() for x in x_KIP.view(2, -1, 12, 12))
    torch.testing.assert_close(straight.sum((1, 2)), other.sum((1, 2)), rtol=0.05, atol=0)

    def likeness(angle: float) -> float:
        again = torch.from_numpy(rotate(straight.numpy(), angle, axes=(2, 1), reshape=False, order=1))
        return float(torch.cosine_similarity(again.flatten(1), other.flatten(1)).mean())

    assert likeness(30) > max(0.95, likeness(20), likeness(40), likeness(-30))


def test_a_digit_is_there_as_it_is_and_turned_and_in_one_part_alone() -> None:
    (x, y, digit), (new, answer, new_digit) = draw(0, 300)
    assert x.shape == (600, 1, 144) and len(new) == 2 * 1497
    assert torch.equal(y, torch.arange(2).repeat_interleave(300)) and float(answer.float().mean()) == 0.5
    assert torch.equal(digit[:300], digit[300:]) and torch.bincount(new_digit).min() > 200
    together = torch.cat([x, new]).flatten(1).sort(0).values
    assert torch.equal(together, turned()[0].flatten(0, 1).sort(0).values), "every image is in one part"
    assert not torch.equal(draw(1, 300)[0][0], x) and torch.equal(draw(0, 300)[0][0], x)


def test_halves_leave_nothing_out() -> None:
    rows = torch.arange(3, 20)
    first, second = halves(rows, torch.Generator().manual_seed(0), 5)
    assert len(first) == 5 and torch.equal(torch.cat([first, second]).sort().values, rows)


def test_four_networks_of_one_filter_have_as_many_as_one_of_four() -> None:
    four, one = mixture(4, 1), mixture(1, 4)
    assert (
        sum(e.conv.weight.numel() for e in four.experts.experts) == one.experts.experts[0].conv.weight.numel()
    )


def test_a_network_takes_the_maximum_of_each_quarter() -> None:
    network, x = FilterNet(3).double(), torch.randn(2, 144).double()
    seen = network.conv(x.view(2, 1, 12, 12)).relu()
    quarters = [seen[:, :, i : i + 4, j : j + 4].amax((2, 3)) for i in (0, 4) for j in (0, 4)]
    expected = network.head(torch.stack(quarters, dim=2).flatten(1))
    torch.testing.assert_close(network(x), expected)


def test_experts_move_by_their_rate_and_the_router_by_its_gradient() -> None:
    torch.manual_seed(0)
    (x, y, _), _ = draw(0, 20)
    layer = mixture(4, 1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    fit(layer, x, y, 1, lr=0.03, router_lr=1.0, batch=6)

    def moved(part: str) -> float:
        moves: list[Tensor] = [
            (p - before[n]).detach() for n, p in layer.named_parameters() if n.startswith(part)
        ]
        return float(torch.cat([move.flatten() for move in moves]).norm())

    lengths = [moved(f"experts.experts.{e}.") for e in range(4)]
    assert all(length == pytest.approx(0.03, rel=1e-3) or length == 0 for length in lengths) and any(lengths)
    assert 0 < moved("router") != pytest.approx(0.03, rel=1e-3)


def test_experts_split_by_the_answer_and_not_by_digit() -> None:
    """Not what the paper saw on CIFAR-10: of small digits a linear router tells by itself which are turned."""
    found = experiment(0, count=100, steps=200)
    assert found.accuracy > 0.97 and found.told > 0.9
    assert math.log(10) - 0.1 < found.entropy <= math.log(10) + 1e-6


def test_one_linear_classifier_is_enough() -> None:
    whole, alone = linear(0, 200)
    assert whole > 0.97 and alone < whole + 0.01


@pytest.mark.slow
def test_the_claims_have_intervals() -> None:
    found = claims(range(2), quick=True)
    assert len(found) == 6 and all(claim.measured.low <= claim.measured.value for claim in found)


def test_without_scikit_learn_the_way_to_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"scikit-learn: pip install 'libmoe\[theory\]'"):
        digits.__wrapped__()
