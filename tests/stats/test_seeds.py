"""Scatter of seeds: what all methods share is taken out, and a wild method is left to itself."""

from __future__ import annotations

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.stats import clustered_mean, means_over_seeds, pooled_scatter


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


@pytest.mark.parametrize(("methods", "seeds"), [(10, 2), (4, 3), (2, 2)])
@pytest.mark.parametrize(("common", "least"), [(0.0, 0.95), (5.0, 0.88)])
def test_intervals_of_means_cover_also_where_seeds_do_the_same_to_all(
    methods: int, seeds: int, common: float, least: float
) -> None:
    rng, trials = np.random.default_rng(3), 1500
    true_M = rng.normal(size=methods)
    covered = 0
    for _ in range(trials):
        value_MS = true_M[:, None] + common * rng.normal(size=seeds) + rng.normal(size=(methods, seeds))
        covered += sum(m.low <= true <= m.high for m, true in zip(means_over_seeds(value_MS), true_M))
    # Methods share their seeds, so that errors come together and trials are what is counted.
    assert covered / trials / methods >= least - 4 * (least * (1 - least) / trials) ** 0.5


def test_two_seeds_borrow_from_other_methods_and_five_do_not() -> None:
    rng = np.random.default_rng(4)
    value_MS = rng.normal(size=(10, 2))
    widths = [m.high - m.low for m in means_over_seeds(value_MS)]
    own = [m.high - m.low for m in map(clustered_mean, value_MS)]
    assert np.mean(widths) < 0.4 * np.mean(own)
    value_MS = rng.normal(size=(10, 5))
    assert means_over_seeds(value_MS) == [clustered_mean(values) for values in value_MS]


def test_a_wild_method_keeps_its_own_interval_and_a_single_seed_has_none() -> None:
    value_MS = np.vstack([scores(np.random.default_rng(1), 12, 4) * 0.01, [[3.0, 5.0, 3.0, 5.0]]])
    found = means_over_seeds(value_MS)
    assert found[-1] == clustered_mean(value_MS[-1])
    assert found[:-1] == means_over_seeds(value_MS[:-1])
    assert all(np.isnan(mean.low) for mean in means_over_seeds(np.ones((3, 1))))
