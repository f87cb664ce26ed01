"""Scatter of seeds: what all methods share is taken out, and a wild method is left to itself."""

from __future__ import annotations

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.stats import pooled_scatter


def scores(rng: np.random.Generator, methods: int, seeds: int) -> np.ndarray:
    """Scatter of 0.01 by method and seed, half a bit from one seed to the next, methods anywhere."""
    return rng.normal(0, 0.3, (methods, 1)) + 0.5 * np.arange(seeds) + rng.normal(0, 0.01, (methods, seeds))


def test_what_seeds_do_to_all_methods_and_what_methods_are_is_no_scatter() -> None:
    found = pooled_scatter(scores(np.random.default_rng(0), 30, 4))
    assert found.sigma == pytest.approx(0.01, rel=0.2)
    assert found.freedom >= 28 * 3


def test_a_wild_method_widens_nobody_elses_interval() -> None:
    calm = scores(np.random.default_rng(1), 12, 4)
    wild = np.array([[3.0, 5.0, 3.0, 5.0]])
    assert pooled_scatter(np.vstack([calm, wild])) == pooled_scatter(calm)


def test_of_three_methods_none_is_left_out() -> None:
    table = np.array([[0.0, 0.0, 0.0], [0.0, 0.01, 0.0], [0.0, 0.0, 5.0]])
    assert pooled_scatter(table).freedom == 4


@pytest.mark.parametrize("shape", [(4, 2), (6, 3), (20, 5)])
def test_of_equal_methods_hardly_any_is_left_out(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    methods, seeds = shape
    found = [pooled_scatter(rng.normal(size=shape)) for _ in range(600)]
    lost = sum(f.freedom < (methods - 1) * (seeds - 1) for f in found)
    assert lost <= 600 * 0.01 + 4 * (600 * 0.01 * 0.99) ** 0.5
    # Leaving out the odd one must not make the others seem calmer than they are.
    assert np.mean([f.sigma**2 for f in found]) == pytest.approx(1.0, abs=0.1)


def test_one_method_or_one_seed_is_refused() -> None:
    for shape in ((1, 3), (3, 1)):
        with pytest.raises(DataError, match="takes two of each"):
            pooled_scatter(np.zeros(shape))
