"""Budgets that are measured: seconds of steps beside the baseline's, and bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budgeted import RECIPE, SMOE, grid_of, refused
from libmoe.bench.budgets import Calibrator, Steps
from libmoe.bench.budgets.calibration import measure_steps
from libmoe.bench.match import Matched, match_sizes
from libmoe.core.errors import ConfigError
from libmoe.train.recipe import Recipe


def planted(recipe: Recipe, steps: int) -> Steps:
    return Steps([0.02 if recipe.method.name == "smoe" else 0.01] * steps, 10**6)


TIMED: dict[str, Any] = {"match": "active_params + wall_clock"}


def test_slower_steps_are_fewer_at_equal_time() -> None:
    sizes = match_sizes(grid_of(SMOE, **TIMED), Calibrator(measure=planted))
    assert sizes["smoe"].steps == 150 and sizes["smoe"].residuals["wall_clock"] == pytest.approx(0)
    assert sizes["smoe"].clock_spread == 0 and sizes["dense"].clock_spread is None


def test_a_machine_that_slows_down_does_it_to_all_entries_alike() -> None:
    models = ["dense", "one", "two", "three"]
    others = [
        {"method": "smoe", "key": key, "options": {"num_experts": 2 + i, "top_k": 2}}
        for i, key in enumerate(models[1:])
    ]
    calls: list[str] = []

    def slowing(recipe: Recipe, steps: int) -> Steps:
        calls.append(recipe.name.rpartition("/")[2])
        disaster = 9.0 if 4 < len(calls) <= 8 else 0.0  # all of the second round
        drift = 1 + 0.05 * len(calls) + disaster
        return Steps([second * drift for second in planted(recipe, steps).seconds], 10**6)

    sizes = match_sizes(grid_of(*others, **TIMED), Calibrator(measure=slowing))
    assert calls == [*models, *reversed(models), *models]
    for key in models[1:]:
        assert sizes[key].steps == pytest.approx(
            150, rel=0.12
        )  # measured one after another: three times as many
        assert 0 < (sizes[key].clock_spread or 0) < 0.15


def test_the_spread_is_that_of_the_ratio_to_the_baseline() -> None:
    times = iter([1.0, 2.0, 2.2, 1.0, 1.0, 1.8])  # dense, smoe; smoe, dense; dense, smoe

    def noisy(recipe: Recipe, steps: int) -> Steps:
        return Steps([next(times)] * steps, 1)

    smoe = match_sizes(grid_of(SMOE, **TIMED), Calibrator(measure=noisy))["smoe"]
    assert smoe.clock_spread == pytest.approx((1 / 1.8 - 1 / 2.2) / 2 / (1 / 2.0)) and smoe.steps == 150


def test_what_was_measured_once_is_kept_whatever_machine_asks_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def counting(recipe: Recipe, steps: int) -> Steps:
        calls.append(recipe.method.name)
        return planted(recipe, steps)

    def solve(threads: int) -> int:
        calibrator = Calibrator(tmp_path / "calibration.json", threads=threads, measure=counting)
        return match_sizes(grid_of(SMOE, match="wall_clock"), calibrator)["smoe"].steps

    assert (solve(1), solve(2), len(calls)) == (150, 150, 6)
    (tmp_path / "calibration.json").write_text('{"x": 1}')
    with pytest.raises(ConfigError, match="is damaged; delete it"):
        solve(1)


def test_an_entry_that_joins_later_is_timed_against_the_baseline_of_its_own_hour(tmp_path: Path) -> None:
    slower = [1.0]

    def hourly(recipe: Recipe, steps: int) -> Steps:
        return Steps([second * slower[0] for second in planted(recipe, steps).seconds], 10**6)

    def solve(*entries: dict[str, Any]) -> dict[str, Matched]:
        return match_sizes(grid_of(*entries, **TIMED), Calibrator(tmp_path / "c.json", measure=hourly))

    first = solve(SMOE)
    slower[0] = 3.0
    both = solve(SMOE, SMOE | {"key": "late", "recipe": {"train": {"batch_size": 2, "clip": 0.5}}})
    assert both["smoe"] == first["smoe"] and both["late"].steps == first["smoe"].steps


def test_seeds_and_lengths_of_a_run_need_no_new_measurement() -> None:
    grid, calls = grid_of(SMOE), []
    calibrator = Calibrator(measure=lambda recipe, steps: calls.append(1) or planted(recipe, steps))
    recipe = grid.cell_recipe(grid.entry("smoe"), 0, {})
    other = replace(recipe, seed=5, name="x", train=replace(recipe.train, steps=999, lr=0.1))
    assert calibrator.peak_memory(recipe) == calibrator.peak_memory(other) == 10**6 and len(calls) == 1
    calibrator.peak_memory(replace(recipe, train=replace(recipe.train, batch_size=9)))
    assert len(calls) == 2


def test_a_real_calibration_times_real_steps() -> None:
    grid = grid_of(SMOE)
    found = measure_steps(grid.cell_recipe(grid.entry("smoe"), 0, SMOE["options"]), 3)
    assert len(found.seconds) == 3 and all(0 < second < 60 for second in found.seconds)
    assert found.peak_memory_bytes > 10**5


def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    def growing(recipe: Recipe, steps: int) -> Steps:
        width = recipe.method.options.get("expert_hidden", 100)
        return Steps([0.01] * steps, 10_000 + 10 * width)

    sizes = match_sizes(grid_of(SMOE, match="memory", memory="measured"), Calibrator(measure=growing))
    assert sizes["smoe"].options["expert_hidden"] == 100


def test_memory_that_is_not_modelled_is_refused() -> None:
    train = RECIPE["train"] | {"activation_checkpointing": True}
    assert "set memory: measured" in refused(SMOE, match="memory", recipe=RECIPE | {"train": train})
