"""The best size of a budget, with an interval, and a verdict where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from libmoe.bench.scaling import (
    BudgetSolver,
    Runs,
    ScalingLaw,
    best_tokens_per_param,
    density_for,
    isoflop_profiles,
    minimum,
    trends,
)
from libmoe.core.errors import ConfigError, DataError


def valley(
    noise: float = 0.0, seed: int = 0, best: float = 3e8, points: int = 7
) -> tuple[np.ndarray, np.ndarray]:
    size = np.geomspace(1e8, 1e9, points)
    off = noise * np.random.default_rng(seed).standard_normal(points)
    return size, 2.5 + 0.02 * np.log(size / best) ** 2 + off


def test_the_vertex_of_a_parabola_is_found() -> None:
    found = minimum(*valley())
    assert found.verdict == "minimum"
    assert found.size == pytest.approx(3e8, rel=1e-6) and found.loss == pytest.approx(2.5)
    assert np.polyval(found.parabola, np.log(found.sizes)) == pytest.approx(found.losses)


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    repeats, held = 400, 0
    for seed in range(repeats):
        found = minimum(*valley(0.002, seed))
        held += (found.low or 0) <= 3e8 <= (found.high or np.inf)
    assert binom.ppf(0.001, repeats, 0.95) <= held <= binom.ppf(0.999, repeats, 0.95)


@pytest.mark.parametrize(("best", "verdict"), [(1e11, "falls to the edge"), (1e6, "rises from the edge")])
def test_a_curve_without_a_minimum_says_to_which_edge_it_falls(best: float, verdict: str) -> None:
    found = minimum(*valley(best=best))
    assert found.verdict == verdict and found.size is None and found.low is None


def test_noise_is_no_minimum() -> None:
    size, _ = valley(points=6)
    found = [minimum(size, np.random.default_rng(seed).standard_normal(6)) for seed in range(200)]
    assert sum(one.verdict == "minimum" for one in found) < 0.06 * len(found)


def test_three_sizes_give_a_minimum_without_an_interval() -> None:
    found = minimum([1, 2, 4], [2.0, 1.0, 2.0])
    assert found.size == pytest.approx(2) and found.low is None and found.high is None
    with pytest.raises(DataError, match="at least 3 different sizes, got 2"):
        minimum([1, 2, 2], [2.0, 1.0, 2.0])
    with pytest.raises(DataError, match="positive"):
        minimum([1, -2, 3], [2.0, 1.0, 2.0])


def test_profiles_agree_with_the_law_their_runs_follow(chinchilla: ScalingLaw) -> None:
    solver = BudgetSolver(chinchilla)
    n, d = [], []
    for flops in (1e19, 1e20, 1e21):
        best = solver.loss_optimal(flops).params
        n += [best * factor for factor in np.geomspace(0.5, 2, 7)]
        d += [flops / 6 / size for size in n[-7:]]
    profiles = isoflop_profiles(Runs.of(n, d, chinchilla.predict(n, d)))
    for profile in profiles:
        best = solver.loss_optimal(profile.flops).params
        assert profile.minimum.size == pytest.approx(best, rel=0.02)
    (trend,) = trends(profiles)
    assert trend.power == pytest.approx(0.28 / 0.62, abs=0.01)
    assert trend.at(1e20) == pytest.approx(solver.loss_optimal(1e20).params, rel=0.02)


def test_budgets_and_numbers_of_experts_are_not_mixed() -> None:
    n = np.tile([1e8, 2e8, 4e8, 8e8], 4)
    flops = np.repeat([1e18, 1e19, 1e18, 1e19], 4) * np.linspace(0.99, 1.01, 16)
    experts = np.repeat([1, 1, 8, 8], 4)
    loss = 3 + np.log(n / 3e8) ** 2 - 0.1 * experts
    profiles = isoflop_profiles(Runs.of(n, flops / 6 / n, loss, experts=experts, flops=flops))
    assert [p.experts for p in profiles] == [1, 1, 8, 8] and all(len(p.minimum.sizes) == 4 for p in profiles)
    with pytest.raises(DataError, match="no budget of training FLOPs"):
        isoflop_profiles(Runs.of(n, 1e9, loss))


def test_the_best_tokens_per_parameter_is_found_or_said_to_be_at_the_edge() -> None:
    total = np.geomspace(3e8, 5e10, 9)
    tokens = 1.25e11
    reasoning = 1.0 + 0.05 * np.log(tokens / total / 20) ** 2
    found = best_tokens_per_param(tokens, total, reasoning)
    assert found.size == pytest.approx(20) and found.verdict == "minimum"
    recall = 3 - 0.1 * np.log(total)  # keeps falling with total parameters
    assert best_tokens_per_param(tokens, total, recall).verdict == "rises from the edge"


def test_the_density_rule_gives_the_tokens_per_parameter_asked_for() -> None:
    found = density_for(1.25e11, shared_params=2e8, expert_params=5e7, top_k=2)
    assert found.tokens_per_param == pytest.approx(20, rel=0.01)
    assert found.density == 2 / found.experts and found.total_params == 2e8 + found.experts * 5e7
    memory = density_for(1.25e11, 2e8, 5e7, 2, tokens_per_param=5)
    assert memory.experts > found.experts and memory.density < found.density
    with pytest.raises(ConfigError, match="need a smaller model or more tokens"):
        density_for(1e9, 2e8, 5e7, 2)
    with pytest.raises(ConfigError, match="tokens must be positive"):
        density_for(0, 2e8, 5e7, 2)
