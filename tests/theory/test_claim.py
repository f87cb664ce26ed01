"""A claim is decided by its interval, not by its mean."""

from __future__ import annotations

import pytest

from libmoe.theory import THEORIES, claim


@pytest.mark.parametrize(
    ("values", "direction", "verdict"),
    [
        ([0.8, 0.82, 0.81], "above", "holds"),
        ([0.8, 0.82, 0.81], "below", "fails"),
        ([0.4, 0.9, 0.5], "above", "open"),
        ([0.4, 0.9, 0.5], "below", "open"),
        ([0.1, 0.11, 0.12], "above", "fails"),
        ([0.6], "above", "holds"),
        ([0.6], "below", "fails"),
    ],
)
def test_the_verdict_is_that_of_the_whole_interval(values: list[float], direction: str, verdict: str) -> None:
    assert claim("", direction, 0.5, values, "").verdict == verdict


def test_every_theory_belongs_to_a_paper_and_says_how_long_it_takes() -> None:
    assert {theory.paper for theory in THEORIES.values()} == {30, 96, 112}
    for theory in THEORIES.values():
        assert all(more.paper == theory.paper and more.title for more in theory.extensions.values())
        assert all(quick < full for full, quick in (t.seconds for t in [theory, *theory.extensions.values()]))
