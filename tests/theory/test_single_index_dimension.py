"""How long exploration takes in more dimensions (arXiv 2506.01656)."""

from __future__ import annotations

import pytest

from libmoe.theory.single_index_dimension import Outcome, claims, experiment, slope


def test_the_exponent_of_a_power_is_found() -> None:
    assert slope([3 * d**1.7 for d in (8, 16, 32)]) == pytest.approx(1.7)
    assert slope([5, 5, 5]) == 0 and slope([4, 2], (1, 2)) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("purity", "steps"),
    [
        ((0.5, 0.8, 0.95, 0.97), 200),
        ((0.95, 0.8, 0.95, 0.97), 200),  # luck at first does not count
        ((0.5, 0.95, 0.8, 0.97), 800),
        ((0.95, 0.95, 0.92, 0.9), 1),
        ((0.5, 0.95, 0.97, 0.85), 1600),  # not within the steps there were
    ],
)
def test_purity_counts_once_it_stays(purity: tuple[float, ...], steps: int) -> None:
    assert Outcome(1, purity, (0, 50, 200, 800)).pure == steps


def test_directions_take_longer_to_find_in_more_dimensions() -> None:
    small, large = (experiment(0, dim, looks=(0, 600), router_steps=1) for dim in (8, 32))
    assert small.found < large.found <= 600
    assert len(small.purity) == 2 and all(0.5 <= p <= 1 for p in small.purity)


def test_what_is_not_found_counts_as_twice_the_steps() -> None:
    assert experiment(0, 32, looks=(0, 10), router_steps=1).found == 20


@pytest.mark.slow
def test_it_takes_fewer_steps_than_the_theorem_allows() -> None:
    found = claims(range(3))
    assert [claim.verdict for claim in found[:2]] == ["holds", "holds"]
