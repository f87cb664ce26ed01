"""A benchmark sees what it says it can see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from libmoe.core.errors import ConfigError
from libmoe.stats import (
    Units,
    Variability,
    common_runs,
    crossed_bootstrap,
    detectable_difference,
    pooled_scatter,
    variability,
)

METHODS, DOMAINS, WINDOWS = 6, 4, 30
SEED, TASTE = 0.01, 0.04


def grid(rng: np.random.Generator, effect: float, seeds: int) -> np.ndarray:
    """Bits per byte ``[methods, seeds, windows]`` with known scatter; the second method is ``effect`` worse."""
    units = DOMAINS * WINDOWS
    text = np.repeat(rng.normal(2, 0.4, size=DOMAINS), WINDOWS) + rng.normal(0, 0.2, size=units)
    run = rng.normal(0, 0.03, size=(1, seeds, 1)) + rng.normal(0, SEED, size=(METHODS, seeds, 1))
    value = text + run + rng.normal(0, TASTE, size=(METHODS, 1, units))
    value[1] += effect
    return value


def by_domain() -> list[int]:
    return np.repeat(np.arange(DOMAINS), WINDOWS).tolist()


def test_both_parts_are_recovered() -> None:
    rng = np.random.default_rng(0)
    units = Units(DOMAINS * WINDOWS, strata=by_domain())
    found = [variability(grid(rng, 0.0, 4), units) for _ in range(60)]
    assert np.mean([f.seed_sigma**2 for f in found]) ** 0.5 == pytest.approx(SEED, rel=0.05)
    assert np.mean([f.unit_sigma**2 for f in found]) ** 0.5 == pytest.approx(TASTE * math.sqrt(2), rel=0.05)
    assert found[0].methods == METHODS


def test_two_methods_have_the_error_of_their_pair() -> None:
    value = grid(np.random.default_rng(1), 0.0, 4)[:2]
    found = variability(value)
    gain = value[1] - value[0]
    own = crossed_bootstrap(gain)
    assert math.hypot(found.seed_sigma * math.sqrt(2 / 4), found.unit_sigma / math.sqrt(120)) == (
        pytest.approx(own.stderr)
    )


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_one_source_of_scatter_gives_the_power_of_the_t_test(seeds: int) -> None:
    theirs = detectable_difference(math.sqrt(2 / seeds), seeds - 1)
    assert Variability(1.0, 0.0, 2).detectable(seeds, 50).effect == pytest.approx(theirs, rel=0.01)
    theirs = detectable_difference(1 / math.sqrt(50), 49, level=0.99, power=0.9)
    found = Variability(0.0, 1.0).detectable(seeds, 50, level=0.95, comparisons=5, power=0.9)
    assert found.effect == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("methods", "seeds"), [(2, 2), (2, 3), (METHODS, 2), (METHODS, 4)])
def test_power_at_the_detectable_difference_is_as_announced(methods: int, seeds: int) -> None:
    rng = np.random.default_rng(2)
    trials = 400
    units = Units(DOMAINS * WINDOWS, strata=by_domain())
    effect = Variability(SEED, TASTE * math.sqrt(2), methods).detectable(seeds, DOMAINS * WINDOWS).effect
    seen = alarms = 0
    for trial in range(trials):
        value = grid(rng, effect, seeds)
        chosen = value[:2] if methods == 2 else value
        pool = pooled_scatter(units.mean(chosen))
        seen += (
            crossed_bootstrap(value[1] - value[0], units, pool=pool, resamples=499, seed=trial).p_value < 0.05
        )
        calm = value[[0, 2]] if methods == 2 else value
        found = crossed_bootstrap(
            value[2] - value[0], units, pool=pooled_scatter(units.mean(calm)), resamples=499, seed=trial
        )
        alarms += found.p_value < 0.05
    low, high = scipy.stats.binom.ppf([5e-4, 1 - 5e-4], trials, 0.8)
    assert low <= seen <= high
    assert alarms <= scipy.stats.binom.ppf(1 - 5e-5, trials, 0.05)


def test_more_of_anything_sees_more_and_more_claims_see_less() -> None:
    model = Variability(0.01, 0.05, 6)
    effects = [model.detectable(seeds, 100).effect for seeds in (2, 3, 5, 10)]
    assert effects == sorted(effects, reverse=True)
    assert model.detectable(3, 400).effect < model.detectable(3, 100).effect
    assert model.detectable(3, 100, comparisons=5).effect > model.detectable(3, 100).effect
    assert Variability(0.01, 0.05, 20).detectable(2, 100).effect < model.detectable(2, 100).effect


def test_seeds_needed_are_the_fewest_that_see_the_effect() -> None:
    model = Variability(0.01, 0.05, 6)
    for effect in (0.03, 0.02, 0.016):
        seeds = model.seeds_needed(effect, 100)
        assert seeds is not None and seeds >= 2
        assert model.detectable(seeds, 100).effect <= effect < model.detectable(seeds - 1, 100).effect
    assert model.seeds_needed(0.01, 100) is None  # a hundred windows do not show it, whatever the seeds
    assert model.seeds_needed(0.01, 400) is not None


def test_a_wild_method_is_not_counted_among_those_that_were_pooled() -> None:
    value = grid(np.random.default_rng(5), 0.0, 4)
    value[3] += 1.0 * np.arange(4)[:, None]
    found = variability(value)
    assert found.methods == METHODS - 1
    assert found.seed_sigma < 5 * SEED


def test_one_seed_sees_nothing_and_says_so() -> None:
    found = Variability(0.01, 0.05, 6).detectable(1, 100)
    assert found.effect == math.inf
    assert found.words() == "With 1 seed and 100 held-out units no difference can be told from chance."
    assert Variability(0.0, 0.05).detectable(1, 100).effect < math.inf
    assert Variability(0.0, 0.0).detectable(1, 1).effect == 0


def test_words_give_a_percentage_of_a_typical_score() -> None:
    found = Variability(0.01, 0.05, 6).detectable(3, 240)
    share = 100 * found.effect / 1.6
    assert found.words(1.6, "window") == (
        f"With 3 seeds and 240 held-out windows you can see a difference of {share:.2g} % (80 % of the time)."
    )


def test_a_grid_of_unequal_seeds_is_planned_from_what_is_common() -> None:
    value = grid(np.random.default_rng(4), 0.0, 3)
    scores = {(f"m{m}", s): value[m, s].tolist() for m in range(METHODS) for s in range(3)}
    del scores["m4", 2]
    runs = common_runs(scores)
    assert runs.value_MSU.shape[1] == 2
    assert variability(runs.value_MSU) == variability(value[:, :2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Variability(-1.0, 0.0), "seed_sigma=-1.0"),
        (lambda: Variability(0.1, math.nan), "unit_sigma=nan"),
        (lambda: Variability(0.1, 0.1, 1), "methods=1"),
        (lambda: Variability(0.1, 0.1).detectable(0, 5), "seeds=0"),
        (lambda: Variability(0.1, 0.1).seeds_needed(0.0, 5), "effect=0.0"),
    ],
)
def test_impossible_plans_are_refused(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
