"""Adding seeds until decided keeps its errors over all looks together."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from libmoe.core.errors import ConfigError
from libmoe.stats import SequentialPlan, crossed_bootstrap
from libmoe.stats.spending import anytime_levels, spent_levels

RULES = ["obrien-fleming", "pocock", "anytime"]
TRIALS = 40_000
LOOKS = (3, 4, 5, 6, 8, 10)


def most(alpha: float, trials: int = TRIALS) -> float:
    return scipy.stats.binom.ppf(1 - 5e-5, trials, alpha)


def intervals(plan: SequentialPlan, gain_ES: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both limits ``[looks, experiments]``, vectorised; :func:`test_a_look_gives_these_intervals` ties them."""
    low, high = [], []
    for seeds, level in zip(plan.looks, plan.levels(), strict=True):
        part = gain_ES[:, :seeds]
        half = scipy.stats.t.isf(level / 2, seeds - 1) * part.std(axis=1, ddof=1) / math.sqrt(seeds)
        low.append(part.mean(axis=1) - half)
        high.append(part.mean(axis=1) + half)
    return np.array(low), np.array(high)


@pytest.mark.parametrize("rule", RULES)
def test_a_look_gives_these_intervals(rule: str) -> None:
    plan = SequentialPlan(LOOKS, rule=rule)
    gain = np.random.default_rng(0).normal(1, 0.5, size=10)
    low, high = intervals(plan, gain[None])
    for place, seeds in enumerate(LOOKS):
        part = gain[:seeds]
        found = plan.look(part.mean(), part.std(ddof=1) / math.sqrt(seeds), seeds - 1, seeds)
        assert (found.low, found.high) == pytest.approx((low[place, 0], high[place, 0]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("looks", [LOOKS, (2, 3), (2, 3, 4, 5), (3, 5, 8)])
def test_a_false_claim_at_any_look_is_as_rare_as_alpha(rule: str, looks: tuple[int, ...]) -> None:
    plan = SequentialPlan(looks, rule=rule)
    low, high = intervals(plan, np.random.default_rng(1).normal(size=(TRIALS, looks[-1])))
    wrong = int(((low > 0) | (high < 0)).any(axis=0).sum())
    assert wrong <= most(0.05)
    if rule != "anytime":
        assert wrong >= 0.8 * 0.05 * TRIALS  # and alpha is used


def test_plain_t_tests_at_every_look_would_be_wrong_too_often() -> None:
    gain = np.random.default_rng(2).normal(size=(TRIALS, 10))
    t = [
        g.mean(1) / g.std(1, ddof=1) * math.sqrt(g.shape[1]) / scipy.stats.t.isf(0.025, g.shape[1] - 1)
        for g in (gain[:, :seeds] for seeds in LOOKS)
    ]
    assert (np.abs(t) > 1).any(axis=0).mean() > 0.1


def test_anytime_holds_for_a_hundred_looks() -> None:
    looks = tuple(range(2, 102))
    low, high = intervals(
        SequentialPlan(looks, rule="anytime"), np.random.default_rng(3).normal(size=(8000, 101))
    )
    assert ((low > 0) | (high < 0)).any(axis=0).sum() <= most(0.05, 8000)


@pytest.mark.parametrize("rule", RULES)
def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent(rule: str) -> None:
    plan = SequentialPlan((4, 8, 16), rule=rule, margin=1.0)
    rng = np.random.default_rng(4)
    low, high = intervals(plan, rng.normal(1.0, 1, size=(TRIALS, 16)))
    assert ((low > -1) & (high < 1)).any(axis=0).sum() <= most(0.025)
    low, high = intervals(plan, rng.normal(0.0, 1, size=(TRIALS, 16)))
    assert ((low > -1) & (high < 1)).any(axis=0).mean() > (0.3 if rule == "anytime" else 0.8)


def test_text_that_stays_the_same_at_all_looks_costs_no_errors() -> None:
    rng = np.random.default_rng(5)
    plan = SequentialPlan((3, 5, 8))
    wrong = 0
    trials = 300
    for trial in range(trials):
        gain = rng.normal(0, 0.5, size=(8, 1)) + rng.normal(size=40) + rng.normal(0, 0.5, size=(8, 40))
        for seeds in plan.looks:
            found = crossed_bootstrap(gain[:seeds], resamples=1, seed=trial)
            look = plan.look(found.difference, found.stderr, found.freedom, seeds)
            if look.verdict in ("better", "worse"):
                wrong += 1
                break
    assert wrong <= most(0.05, trials)


def armitage(looks: tuple[int, ...], alpha: float, budget: np.ndarray) -> list[float]:
    """Boundaries for known scatter, by integrating the density of who goes on (Armitage et al. 1969)."""
    node, weight = np.polynomial.legendre.leggauss(200)
    at, mass, before, spent, found = np.zeros(1), np.ones(1), 0.0, 0.0, []
    for share, allowed in zip(np.array(looks) / looks[-1], budget, strict=True):
        step, root = math.sqrt(share - before), math.sqrt(share)

        def leaves(c: float, at=at, mass=mass, step=step, root=root) -> float:
            return float(mass @ (ndtr((-c * root - at) / step) + ndtr((at - c * root) / step)))

        c = brentq(lambda c, leaves=leaves, left=allowed - spent: leaves(c) - left, 0, 20)
        fresh = c * root * node
        kernel = np.exp(-0.5 * ((fresh[:, None] - at) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        at, mass, before, spent = fresh, kernel @ mass * weight * c * root, share, allowed
        found.append(c)
    return found


@pytest.mark.parametrize(
    ("rule", "published"),
    [
        ("obrien-fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_many_seeds_give_the_published_boundaries(rule: str, published: list[float]) -> None:
    looks, f = (400, 800, 1200, 1600, 2000), np.arange(1, 6) / 5
    budget = 4 * ndtr(ndtri(0.0125) / np.sqrt(f)) if rule != "pocock" else 0.05 * np.log1p((math.e - 1) * f)
    assert armitage(looks, 0.05, budget) == pytest.approx(published, abs=6e-4)
    z = -ndtri(np.array(spent_levels(looks, 2000, 0.05, rule)) / 2)
    assert z == pytest.approx(published, abs=0.02)


def test_levels_do_not_depend_on_looks_to_come() -> None:
    plan = SequentialPlan((3, 5, 8, 10))
    assert plan.levels((3, 5)) == plan.levels((3, 5, 8, 10))[:2] == plan.levels((3, 5, 6))[:2]


def test_one_look_is_the_t_test() -> None:
    assert SequentialPlan((5,)).levels() == pytest.approx((0.05,))
    assert SequentialPlan((5,), comparisons=5).levels() == pytest.approx((0.01,))


@pytest.mark.parametrize("seeds", [5, 9, 40])
def test_anytime_levels_are_where_the_bayes_factor_is_one_over_alpha(seeds: int) -> None:
    t = scipy.stats.t.isf(anytime_levels([seeds], 0.05)[0] / 2, seeds - 1)

    def density(effect: float) -> float:
        return scipy.stats.nct.pdf(t, seeds - 1, effect * math.sqrt(seeds)) * scipy.stats.norm.pdf(effect)

    grid = np.linspace(-8, 8, 4001)
    against = np.trapezoid([density(e) for e in grid[::10]], grid[::10])
    assert against / scipy.stats.t.pdf(t, seeds - 1) == pytest.approx(20, rel=1e-3)


def test_every_verdict_can_be_had() -> None:
    plan = SequentialPlan((3, 6, 9), margin=0.5)
    assert plan.look(0.2, 1.0, 2, 3).verdict == "go on"
    assert plan.look(0.2, 1.0, 2, 3).next_seeds == 6
    assert plan.look(2.0, 0.1, 8, 9).verdict == "better"
    assert plan.look(-2.0, 0.1, 8, 9).verdict == "worse"
    assert plan.look(0.1, 0.1, 8, 9).verdict == "equivalent within margin"
    assert plan.look(0.3, 0.05, 8, 9).verdict == "equivalent within margin"  # not zero, and does not matter
    last = plan.look(0.4, 0.3, 8, 9)
    assert last.verdict == "undecided at the last look" and last.next_seeds is None
    loss = SequentialPlan((3, 6, 9), lower_is_better=True)
    assert loss.look(-2.0, 0.1, 8, 9).verdict == "better" and loss.look(2.0, 0.1, 8, 9).verdict == "worse"
    assert loss.look(0.0, 0.001, 8, 9).verdict == "undecided at the last look"  # nobody named a margin


def test_unknown_scatter_decides_nothing_and_no_scatter_is_exact() -> None:
    plan = SequentialPlan((2, 4), margin=0.1)
    unknown = plan.look(5.0, math.nan, 0, 2)
    assert (unknown.verdict, unknown.low, unknown.high) == ("go on", -math.inf, math.inf)
    assert plan.look(0.0, 0.0, 3, 2).verdict == "equivalent within margin"
    assert SequentialPlan((2, 6), rule="anytime").look(5.0, 1e-9, 1, 2).verdict == "go on"


def test_a_failed_run_moves_a_look_and_the_rest_follows() -> None:
    plan = SequentialPlan((3, 6, 9))
    late = plan.look(1.0, 0.6, 4, 5, before=[3])
    assert late.next_seeds == 6 and late.level < plan.levels()[1]
    with pytest.raises(ConfigError, match="seeds=5 after looks at \\[6\\]"):
        plan.look(1.0, 0.6, 4, 5, before=[6])
    with pytest.raises(ConfigError, match="from 2 to 9 at most"):
        plan.look(1.0, 0.6, 9, 10)
    assert SequentialPlan((3, 6, 9), rule="anytime").look(1.0, 0.6, 9, 10).level > 0


def test_looking_saves_seeds_and_costs_little_power() -> None:
    rng = np.random.default_rng(6)
    gain = rng.normal(1.6, 1, size=(TRIALS, 10))
    once = (intervals(SequentialPlan((10,)), gain)[0] > 0).mean()
    plan = SequentialPlan((4, 7, 10))
    stops = intervals(plan, gain)[0] > 0
    found = stops.any(axis=0)
    used = np.where(found, np.array(plan.looks)[stops.argmax(axis=0)], 10)
    assert found.mean() > once - 0.03
    assert used.mean() < 8


def test_obrien_fleming_is_stricter_early_and_milder_late_than_pocock() -> None:
    strict, even = (SequentialPlan((3, 6, 9), rule=rule).levels() for rule in RULES[:2])
    assert strict[0] < even[0] and strict[-1] > even[-1]
    assert all(a < b for a, b in pairwise(strict))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"looks": (1, 3)}, r"looks=\[1, 3\]"),
        ({"looks": (3, 3)}, r"looks=\[3, 3\]"),
        ({"looks": ()}, r"looks=\[\]"),
        ({"looks": (3,), "alpha": 0.7}, "alpha=0.7"),
        ({"looks": (3,), "margin": 0.0}, "margin=0.0"),
        ({"looks": (3,), "comparisons": 0}, "comparisons=0"),
        ({"looks": (3,), "rule": "pocok"}, "did you mean 'pocock'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SequentialPlan(**wrong)
