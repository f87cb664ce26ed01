"""The interval covers the truth as often as it claims, on planted data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.report.intervals import paired_difference, seed_scatter


def experiment(
    rng: np.random.Generator,
    truth: float,
    *,
    methods: int = 6,
    seeds: int = 2,
    domains: int = 8,
    windows: int = 20,
    seed_noise: float = 0.01,
    text_noise: float = 0.04,
    domain_noise: float = 0.0,
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], dict[str, Any]]]:
    """Every method but the baseline is ``truth`` bits per byte away from it, seen through seeds and text."""
    size_DW = rng.integers(300, 600, (domains, windows)).astype(float)
    text_DW = rng.normal(2.0, 0.4, (domains, 1)) + rng.normal(0, 0.2, size_DW.shape)
    common_S = rng.normal(0, 0.03, seeds)
    rows, units = [], {}
    for m in range(methods):
        name = f"m{m}" if m else "dense"
        taste_DW = rng.normal(0, domain_noise, (domains, 1)) + rng.normal(0, text_noise, size_DW.shape)
        for s in range(seeds):
            noise_DW = rng.normal(0, seed_noise) + rng.normal(0, 0.02, size_DW.shape)
            bits_DW = (text_DW + taste_DW + common_S[s] + noise_DW + (truth if m else 0.0)) * size_DW
            rows.append({"method": name, "seed": s, "bits_per_byte": bits_DW.sum() / size_DW.sum()})
            units[name, s] = {f"d{d}": np.stack([bits_DW[d], size_DW[d]], 1) for d in range(domains)}
    return rows, units


def by_domain(units: dict[tuple[str, int], dict[str, Any]]) -> dict[tuple[str, int], dict[str, float]]:
    return {run: {d: float(w[:, 0].sum() / w[:, 1].sum()) for d, w in u.items()} for run, u in units.items()}


@pytest.mark.parametrize(
    "setting",
    [
        {},  # seeds matter most
        {"seed_noise": 0.0},  # text matters most
        {"seeds": 3, "windows": 6},
        {"seeds": 1, "seed_noise": 0.0},
    ],
)
def test_nominal_95_percent_interval_over_windows_covers_the_truth(setting: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        rows, units = experiment(rng, -0.02, **setting)
        low, high = list(paired_difference(rows, "m1", "dense", units, n_boot=600, seed=trial))[1:]
        covered += low <= -0.02 <= high
    assert covered / 200 >= 0.88


def test_nominal_95_percent_interval_over_domains_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        rows, units = experiment(rng, -0.02, domain_noise=0.03, seed_noise=0.003)
        difference = paired_difference(rows, "m1", "dense", by_domain(units), n_boot=600, seed=trial)
        covered += difference.low <= -0.02 <= difference.high
        assert difference.unit == "domains"
    assert covered / 200 >= 0.88


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    rng = np.random.default_rng(5)
    found_clear = found_none = 0
    for trial in range(100):
        rows, units = experiment(rng, -0.08, seed_noise=0.004)
        found_clear += paired_difference(rows, "m1", "dense", units, n_boot=600, seed=trial).high < 0
        rows, units = experiment(rng, 0.0, seed_noise=0.004)
        none = paired_difference(rows, "m1", "dense", units, n_boot=600, seed=trial)
        found_none += not none.low <= 0 <= none.high
    assert found_clear >= 99
    assert found_none <= 12


def test_identical_runs_differ_by_nothing() -> None:
    rows, units = experiment(np.random.default_rng(6), 0.0)
    for s in (0, 1):
        units["m1", s] = units["dense", s]
    difference = paired_difference(rows, "m1", "dense", units)
    assert difference.mean == 0.0
    assert difference.low <= 0.0 <= difference.high
    assert difference.p_value > 0.9


def test_mean_and_seed_differences_are_those_of_pooled_bits_per_byte() -> None:
    rows, units = experiment(np.random.default_rng(7), -0.05)
    value = {(row["method"], row["seed"]): row["bits_per_byte"] for row in rows}
    difference = paired_difference(rows, "m2", "dense", units)
    assert difference.per_seed == pytest.approx({s: value["m2", s] - value["dense", s] for s in (0, 1)})
    assert difference.mean == pytest.approx(np.mean(list(difference.per_seed.values())))
    assert difference.num_units == 160 and difference.seeds == 2 and difference.unit == "windows"


def test_equal_domains_weigh_each_domain_alike() -> None:
    rows, units = experiment(np.random.default_rng(8), -0.05)
    flat = by_domain(units)
    expected = np.mean([flat["m1", s][d] - flat["dense", s][d] for s in (0, 1) for d in flat["m1", 0]])
    assert paired_difference(rows, "m1", "dense", units, equal_domains=True).mean == pytest.approx(expected)


def test_equal_inputs_give_equal_intervals() -> None:
    rows, units = experiment(np.random.default_rng(9), -0.05)
    assert paired_difference(rows, "m1", "dense", units) == paired_difference(rows, "m1", "dense", units)
    assert paired_difference(rows, "m1", "dense", units) != paired_difference(
        rows, "m1", "dense", units, seed=1
    )


def test_only_seeds_that_both_finished_are_paired() -> None:
    rows, units = experiment(np.random.default_rng(10), -0.05, seeds=3)
    del units["m1", 1]
    assert set(paired_difference(rows, "m1", "dense", units).per_seed) == {0, 2}
    del units["dense", 0], units["dense", 2]
    with pytest.raises(DataError, match="no common seed"):
        paired_difference(rows, "m1", "dense", units)


def test_other_windows_cannot_be_paired() -> None:
    rows, units = experiment(np.random.default_rng(11), 0.0)
    units["m1", 0] = {**units["m1", 0], "d3": units["m1", 0]["d3"][:-1]}
    with pytest.raises(DataError, match="'d3'"):
        paired_difference(rows, "m1", "dense", units)
    units["m1", 0] = {"d0": units["m1", 1]["d0"]}
    with pytest.raises(DataError, match="held-out domains"):
        paired_difference(rows, "m1", "dense", units)


def test_one_seed_and_one_unit_give_no_interval() -> None:
    rows = [{"method": m, "seed": 0, "bits_per_byte": v} for m, v in (("a", 1.0), ("b", 1.5))]
    difference = paired_difference(rows, "a", "b", {("a", 0): {"all": 1.0}, ("b", 0): {"all": 1.5}})
    assert difference.mean == -0.5
    assert math.isnan(difference.low) and math.isnan(difference.p_value)


def test_scatter_of_seeds_leaves_out_what_all_methods_share_and_a_wild_method() -> None:
    rng = np.random.default_rng(12)
    rows = [
        {"method": f"m{m}", "seed": s, "bits_per_byte": 2.0 + 0.5 * s + rng.normal(0, 0.01)}
        for m in range(30)
        for s in range(4)
    ]
    calm = seed_scatter(rows)
    assert calm is not None
    assert calm.sigma == pytest.approx(0.01, rel=0.2)
    wild = [{"method": "wild", "seed": s, "bits_per_byte": 3.0 + 2.0 * (s % 2)} for s in range(4)]
    assert seed_scatter(rows + wild) == calm
    assert seed_scatter(rows[:4]) is None


def test_a_method_with_one_seed_gets_the_scatter_of_the_others() -> None:
    rows, units = experiment(np.random.default_rng(14), -0.05, methods=12, seed_noise=0.03)
    del units["m1", 1]
    rows = [row for row in rows if (row["method"], row["seed"]) != ("m1", 1)]
    lone = paired_difference(rows, "m1", "dense", units)
    text_only = paired_difference([row for row in rows if row["seed"] == 0], "m1", "dense", units)
    assert lone.seeds == text_only.seeds == 1
    assert lone.high - lone.low > 3 * (text_only.high - text_only.low)
