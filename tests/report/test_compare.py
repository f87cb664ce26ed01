"""Differences to the baseline: intervals cover the truth, text that belongs together is drawn together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from libmoe.report.compare import compare, seed_scatter
from libmoe.report.load import Grid
from libmoe.report.units import Evaluations
from planted_grid import methods_of, planted_grid

TRUTH = {"dense": 0.0, "better": -0.04, "same": 0.0, "worse": 0.03, "other": 0.0}
TRIALS = 100


def compared(grid: Grid) -> dict[str, dict[str, Any]]:
    methods = methods_of(grid)
    compare(grid, Evaluations(grid), methods, "dense", [])
    return {method["method"]: method for method in methods}


def rates(trials: int = TRIALS, **setting: Any) -> tuple[int, int, int]:
    """How often the interval of "same" covers nought, how often anything false is claimed, and what is true found."""
    rng = np.random.default_rng(0)
    covered = false = found = 0
    for _ in range(trials):
        methods = compared(planted_grid(rng, TRUTH, **setting))
        covered += methods["same"]["difference"]["low"] <= 0 <= methods["same"]["difference"]["high"]
        false += any(methods[name]["verdict"] in ("better", "worse") for name in ("same", "other"))
        found += methods["better"]["verdict"] == "better"
    return covered, false, found


@pytest.mark.parametrize(
    "setting", [{"seeds": 2}, {"seeds": 4, "seed_noise": 0.002}, {"seeds": 1, "seed_noise": 0.0}]
)
def test_intervals_cover_and_verdicts_are_rarely_false(setting: dict[str, Any]) -> None:
    covered, false, found = rates(**setting)
    assert covered >= scipy.stats.binom.ppf(1e-4, TRIALS, 0.95)
    assert false <= scipy.stats.binom.ppf(1 - 1e-4, TRIALS, 0.05)
    assert found > 0.5 * TRIALS


def test_windows_of_one_document_are_not_taken_for_independent() -> None:
    known, unknown = (rates(50, seed_noise=0.0, documents=told)[0] for told in (True, False))
    assert unknown < scipy.stats.binom.ppf(1e-3, 50, 0.95) <= known


def test_the_summary_has_all_that_a_sequential_plan_asks_for() -> None:
    found = compared(planted_grid(np.random.default_rng(1), TRUTH, seeds=4))["better"]["difference"]
    assert found["stderr"] > 0 and found["freedom"] > 4
    assert found["low"] < found["mean"] < found["high"] and found["clusters"] == 16
    assert found["mean"] == pytest.approx(np.mean(list(found["by_seed"].values())))
    assert (found["unit"], found["covers"]) == ("documents", "seeds and units")


def test_equal_inputs_give_equal_intervals() -> None:
    a, b = (compared(planted_grid(np.random.default_rng(2), TRUTH))["same"] for _ in range(2))
    assert a == b


def test_identical_runs_differ_by_nothing() -> None:
    grid = planted_grid(np.random.default_rng(3), TRUTH)
    for seed in range(3):
        grid.runs["same", seed].evaluation.update(grid.runs["dense", seed].evaluation)
    found = compared(grid)["same"]
    assert found["difference"]["mean"] == 0.0 and found["verdict"] == "indistinguishable"


def test_only_seeds_that_both_finished_are_paired_and_the_pool_helps_who_has_one() -> None:
    grid = planted_grid(np.random.default_rng(4), TRUTH, seed_noise=0.05)
    rows = [row for row in grid.rows if row.method != "same" or row.seed == 1]
    lone = compared(Grid(grid.folder, {}, rows, grid.runs))["same"]["difference"]
    alone = [row for row in rows if row.seed == 1]
    text = compared(Grid(grid.folder, {}, alone, grid.runs))["same"]["difference"]
    assert list(lone["by_seed"]) == [1] and text["covers"] == "units"
    assert lone["high"] - lone["low"] > 3 * (text["high"] - text["low"])


def test_scatter_is_pooled_over_the_largest_complete_table() -> None:
    grid = planted_grid(np.random.default_rng(5), TRUTH, seeds=5)
    decided = [row for row in grid.rows if row.method in ("dense", "same") or row.seed < 3]
    pool = seed_scatter(decided)
    assert pool is not None and pool.freedom == (5 - 1) * (3 - 1)
    assert seed_scatter(decided[:1]) is None


def looks(verdict: str, **other: Any) -> dict[str, Any]:
    look = {"planned": 3, "seeds": 3, "verdict": verdict, "low": -0.5, "high": 0.5, "level": 0.01, **other}
    return {"until": {"looks": [3, 5], "taken": {"same": [look], "better": [], "worse": [], "other": []}}}


def test_what_a_sequential_plan_decided_is_the_verdict() -> None:
    for said, verdict in (
        ("better", "better"), ("worse", "worse"), ("equivalent within margin", "equivalent"),
        ("go on", "indistinguishable"), ("undecided at the last look", "indistinguishable"),
    ):  # fmt: skip
        methods = compared(planted_grid(np.random.default_rng(6), TRUTH, protocol=looks(said)))
        assert methods["same"]["verdict"] == verdict
        assert (methods["same"]["difference"]["low"], methods["same"]["difference"]["high"]) == (-0.5, 0.5)


def test_a_look_that_may_claim_nothing_shows_no_interval() -> None:
    protocol = looks("go on", low=None, high=None)
    found = compared(planted_grid(np.random.default_rng(7), TRUTH, protocol=protocol))["same"]["difference"]
    assert found["low"] is None and found["stderr"] > 0
