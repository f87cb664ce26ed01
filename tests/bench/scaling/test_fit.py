"""Planted constants come out again, with intervals that hold them; runs that cannot tell them are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from libmoe.bench.scaling import FORMS, Runs, ScalingLaw, fit, leave_largest_out, resample
from libmoe.core.errors import ConfigError, DataError

POWER, EXPERTS = FORMS["power"], FORMS["experts"]


def test_noiseless_constants_come_out_exactly(chinchilla: ScalingLaw, planted: Callable[..., Runs]) -> None:
    found = fit(POWER, planted(chinchilla))
    for name, value in chinchilla.constants.items():
        assert found.constants[name] == pytest.approx(value, rel=1e-6), name
    assert found.goodness.rmsle < 1e-9 and found.goodness.r2 == pytest.approx(1) and not found.at_bound


def test_the_law_with_experts_comes_out_of_its_papers_design(
    with_experts: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    runs = planted(with_experts, experts=(1, 4, 8, 16, 32))
    found = fit(EXPERTS, runs)
    beyond = (5e9, 1e11, np.array([1, 8, 64]))
    assert found.predict(*beyond) == pytest.approx(with_experts.predict(*beyond), rel=1e-3)
    noisy = planted(with_experts, 0.005, seed=3, experts=(1, 4, 8, 16, 32))
    assert fit(EXPERTS, noisy).goodness.rmsle < 2 * 0.005


def test_outliers_hardly_move_the_law(chinchilla: ScalingLaw, planted: Callable[..., Runs]) -> None:
    runs = planted(chinchilla, sizes=5, budgets=5)
    loss_R = runs.loss_R.copy()
    loss_R[[3, 17]] *= 1.3  # two runs that diverged
    found = fit(POWER, Runs.of(runs.params_R, runs.tokens_R, loss_R))
    assert found.predict(1e10, 2e11) == pytest.approx(chinchilla.predict(1e10, 2e11), rel=1e-3)


def test_the_same_runs_give_the_same_constants_and_intervals(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    runs = planted(chinchilla, 0.004)
    first, second = fit(POWER, runs), fit(POWER, runs)
    assert first.constants == second.constants
    assert resample(first, draws=20).laws == resample(second, draws=20).laws


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    repeats = 16
    held = dict.fromkeys([*POWER.constants, "prediction"], 0)
    truth = float(chinchilla.predict(2e10, 4e11))
    for repeat in range(repeats):
        drawn = resample(fit(POWER, planted(chinchilla, 0.004, seed=repeat)), draws=39)
        for name, value in chinchilla.constants.items():
            _, low, high = drawn.constant(name)
            held[name] += low <= value <= high
        _, low_P, high_P = drawn.predict(2e10, 4e11)
        held["prediction"] += bool(low_P <= truth <= high_P)
    for name, count in held.items():
        assert count >= binom.ppf(0.002, repeats, 0.95), (name, count)


def test_seeds_of_a_configuration_are_drawn_together(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    """Copies of the same runs are no new evidence: the interval must not shrink."""
    once = planted(chinchilla, 0.004, seed=1)
    again = Runs.of(*(np.tile(a, 4) for a in (once.params_R, once.tokens_R, once.loss_R)))
    widths = []
    for runs in (once, again):
        _, low, high = resample(fit(POWER, runs), draws=60).constant("alpha")
        widths.append(high - low)
    assert widths[1] > 0.8 * widths[0]


def test_noise_between_seeds_is_told_from_what_the_form_misses(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    good = fit(POWER, planted(chinchilla, 0.003, repeats=3)).goodness
    assert good.seed_noise == pytest.approx(0.003, rel=0.3) and good.rmsle < 1.3 * good.seed_noise
    assert fit(POWER, planted(chinchilla, 0.003)).goodness.seed_noise is None


def test_known_constants_are_kept(chinchilla: ScalingLaw, planted: Callable[..., Runs]) -> None:
    found = fit(POWER, planted(chinchilla, 0.003), fixed={"E": 1.69, "alpha": 0.34})
    assert found.constants["E"] == 1.69 and found.constants["alpha"] == 0.34
    assert found.constants["beta"] == pytest.approx(0.28, abs=0.02)
    assert all(law.constants["E"] == 1.69 for law in resample(found, draws=20).laws)


def test_a_constant_that_the_runs_do_not_tell_is_named(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    floorless = ScalingLaw(POWER, {**chinchilla.constants, "E": 0.0})
    assert fit(POWER, planted(floorless)).at_bound == ("E",)


def test_extrapolation_is_judged_on_runs_that_were_not_seen(
    chinchilla: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    runs = planted(chinchilla, 0.002, sizes=5, budgets=5, repeats=2)
    found = leave_largest_out(POWER, runs)
    assert found.held.configs >= 5 and found.fit.runs.configs + found.held.configs == 25
    assert found.held.flops_R.min() > found.fit.runs.flops_R.max() and found.reach > 1
    assert found.error < 0.01 and abs(found.bias) <= found.error <= found.worst
    bent = Runs.of(  # a law that breaks at the largest budgets is found out
        runs.params_R, runs.tokens_R, np.where(runs.flops_R > found.fit.runs.flops_R.max(), 1.1, 1) * runs.loss_R
    )  # fmt: skip
    assert leave_largest_out(POWER, bent).bias < -0.05


def degenerate(law: ScalingLaw, n: list[float], d: list[float]) -> Runs:
    return Runs.of(n, d, law.predict(n, d))


def test_runs_that_cannot_tell_the_constants_are_refused_in_one_line(chinchilla: ScalingLaw) -> None:
    spread = [1e8 * 2**i for i in range(8)]
    cases = {
        "4 configurations cannot determine the 5 free constants": (spread[:4], [1e9, 4e9, 2e9, 9e9]),
        "3 or more different numbers of active parameters, got 1": ([1e8] * 8, spread),
        "3 or more different numbers of tokens, got 2": (spread, [1e9, 2e9] * 4),
        "active parameters and tokens change together": (spread, [20 * n for n in spread]),
    }
    for words, (n, d) in cases.items():
        with pytest.raises(DataError, match=words) as refused:
            fit(POWER, degenerate(chinchilla, n, d))
        assert "\n" not in str(refused.value)
    n, d = np.meshgrid(spread, spread)
    with pytest.raises(DataError, match="same loss"):
        fit(POWER, Runs.of(n, d, 2.0))


def test_the_law_with_experts_needs_five_numbers_of_them_or_less_to_find(
    with_experts: ScalingLaw, planted: Callable[..., Runs]
) -> None:
    runs = planted(with_experts, 0.002, experts=(1, 8, 32))
    with pytest.raises(DataError, match="5 or more different numbers of experts, got 3"):
        fit(EXPERTS, runs)
    assert fit(EXPERTS, runs, fixed={"E_start": 1.5, "E_max": 100.0}).goodness.rmsle < 0.004
    with pytest.raises(DataError, match="add num_experts"):
        fit(EXPERTS, Runs.of(runs.params_R, runs.tokens_R, runs.loss_R, experts=np.nan))


def test_wrong_settings_are_named(chinchilla: ScalingLaw, planted: Callable[..., Runs]) -> None:
    runs = planted(chinchilla)
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        fit(POWER, runs, fixed={"alpa": 0.3})
    with pytest.raises(ConfigError, match="alpha of law 'power' must be in"):
        fit(POWER, runs, fixed={"alpha": 9.0})
    with pytest.raises(ConfigError, match="at least 20 draws"):
        resample(fit(POWER, runs), draws=3)
    with pytest.raises(ConfigError, match="between 0 and 1, got 2"):
        leave_largest_out(POWER, runs, share=2)
    with pytest.raises(DataError, match="without the 15 largest configurations: 1 configurations"):
        leave_largest_out(POWER, runs, share=0.9)
