"""On planted clustered data the intervals cover, false alarms are rare and power is as announced.

Counts are held against bounds that a correct method misses once in ten thousand runs; seeds are fixed besides.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from libmoe.stats import Pairs, bootstrap, paired, paired_average

SIMULATIONS = 1000


def bounds(probability: float, trials: int = SIMULATIONS) -> tuple[int, int]:
    low, high = scipy.stats.binom.ppf([5e-5, 1 - 5e-5], trials, probability)
    return int(low), int(high)


def clustered(
    rng: np.random.Generator, effect: float, groups: int
) -> tuple[list[float], list[float], list[int]]:
    """Scores of two models on groups of 1 to 6 items; what the models differ by is partly common to a group."""
    sizes = rng.integers(1, 7, size=groups)
    of = np.repeat(np.arange(groups), sizes)
    hard = rng.normal(size=groups)[of] + rng.normal(size=of.size)
    difference = effect + rng.normal(0, 0.6, size=groups)[of] + rng.normal(0, 0.5, size=of.size)
    return hard.tolist(), (hard + difference).tolist(), of.tolist()


@pytest.mark.parametrize("groups", [12, 40])
def test_intervals_cover_the_truth_and_false_alarms_are_rare(groups: int) -> None:
    rng = np.random.default_rng(groups)
    covered = alarms = naive = 0
    for _ in range(SIMULATIONS):
        a, b, clusters = clustered(rng, 0.0, groups)
        found, blind = paired(a, b, clusters), paired(a, b)
        covered += found.low <= 0 <= found.high
        alarms += found.p_value < 0.05
        naive += blind.p_value < 0.05
    low, high = bounds(0.95)
    assert low - 0.01 * SIMULATIONS <= covered <= high  # unequal clusters cost up to a percent
    assert alarms <= bounds(0.05)[1]
    assert naive > 0.15 * SIMULATIONS  # which is what clusters are for


def test_right_or_wrong_answers_raise_no_more_alarms_than_allowed() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(SIMULATIONS):
        easy = rng.beta(2, 2, size=80)
        a, b = (rng.random(80) < easy).astype(float), (rng.random(80) < easy).astype(float)
        found = paired(a.tolist(), b.tolist())
        assert found.exact
        alarms += found.p_value < 0.05
    assert alarms <= bounds(0.05)[1]


def test_a_difference_of_the_detectable_size_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    planned = np.mean([paired(*clustered(rng, 0.0, 40)).detectable() ** 2 for _ in range(300)]) ** 0.5
    seen = sum(paired(*clustered(rng, planned, 40)).p_value < 0.05 for _ in range(SIMULATIONS))
    low, high = bounds(0.8)
    assert low - 0.02 * SIMULATIONS <= seen <= high + 0.02 * SIMULATIONS  # the scatter itself was estimated


def test_averages_over_tasks_cover_and_raise_few_alarms() -> None:
    rng = np.random.default_rng(3)
    covered = alarms = 0
    for _ in range(SIMULATIONS // 2):
        parts = [
            Pairs(*clustered(rng, effect, groups)) for effect, groups in ((0.2, 15), (-0.2, 25), (0.0, 60))
        ]
        found = paired_average(parts)
        covered += found.low <= 0 <= found.high
    for _ in range(SIMULATIONS // 2):
        found = paired_average([Pairs(*clustered(rng, 0.0, groups)) for groups in (15, 25, 60)])
        alarms += found.p_value < 0.05
    low, high = bounds(0.95, SIMULATIONS // 2)
    assert low - 0.01 * SIMULATIONS <= covered <= high
    assert alarms <= bounds(0.05, SIMULATIONS // 2)[1]


def test_bootstrap_intervals_of_a_perplexity_cover_with_clusters() -> None:
    rng = np.random.default_rng(4)
    truth = np.exp(2.0)
    covered = blind = 0
    trials = 250
    for trial in range(trials):
        of = np.repeat(np.arange(40), rng.integers(1, 7, size=40))
        loss = 2.0 + rng.normal(0, 0.4, size=40)[of] + rng.normal(0, 0.3, size=of.size)

        def perplexity(places: np.ndarray, loss: np.ndarray = loss) -> float:
            return float(np.exp(loss[places].mean()))

        found = bootstrap(perplexity, of.tolist(), resamples=499, seed=trial)
        naive = bootstrap(perplexity, of.size, resamples=199, method="percentile", seed=trial)
        covered += found.low <= truth <= found.high
        blind += naive.low <= truth <= naive.high
    low, high = bounds(0.94, trials)  # forty clusters: percentiles are a little narrow
    assert low <= covered <= high
    assert blind < low
