"""Budgets that cannot be met, or make no sense, are refused with the nearest that can."""

from __future__ import annotations

from typing import Any

import pytest

from budgeted import DENSE, RECIPE, SMOE, refused, sizes_of


def test_a_width_below_one_names_what_one_would_cost() -> None:
    many = SMOE | {"options": {"num_experts": 3000, "top_k": 3000}}
    assert "entry 'smoe': even expert_hidden=1 has" in refused(many)


def test_a_coarse_knob_names_the_nearest_value_and_how_to_allow_it() -> None:
    many = {"method": "smoe", "options": {"num_experts": 64, "top_k": 2}}
    line = refused(many, match="parameter_equal")
    assert (
        "entry 'smoe': the nearest to" in line
        and "outside the tolerance of 1.00%; set tolerance: 0.0" in line
    )
    allowed = float(line.partition("set tolerance: ")[2].split()[0])
    sizes = sizes_of(many | {"tolerance": allowed}, match="parameter_equal")
    assert 0.01 < abs(sizes["smoe"].residual or 0) <= allowed


def test_steps_within_the_warm_up_are_refused() -> None:
    huge = SMOE | {"options": SMOE["options"] | {"expert_hidden": 30_000}}
    line = refused(huge, match="train_flops")
    assert "are worth" in line and "train.warmup_steps=10 needs at least 11" in line


def test_a_decay_that_would_overlap_the_warm_up_names_the_entry() -> None:
    train = RECIPE["train"] | {"schedule": "wsd", "warmup_steps": 20, "decay_fraction": 0.9}
    slow = SMOE | {"options": SMOE["options"] | {"expert_hidden": 2000}}
    line = refused(slow, match="train_flops", recipe=RECIPE | {"train": train})
    assert line.startswith("entry 'smoe': train.decay_fraction=0.9 overlaps")


def test_dense_has_no_experts_to_count_out() -> None:
    wide = {"method": "dense", "key": "wide", "match": "total_params", "solve": "experts"}
    assert "entry 'wide': it has no number of experts" in refused(SMOE, wide)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"match": "train_flops"}, "both match and tokens_per_param decide the steps"),
        ({"match": "train_flops", "solve": "width"}, "both match and tokens_per_param decide the steps"),
        (
            {"recipe": {"train": {"steps": 9}}},
            "both recipe.train.steps and tokens_per_param decide the steps",
        ),
    ],
)
def test_steps_are_decided_once(entry: dict[str, Any], says: str) -> None:
    assert says in refused(SMOE | {"tokens_per_param": 2.0} | entry)


def test_the_baseline_has_no_budget_to_meet() -> None:
    for own in ({"match": "flops"}, {"tolerance": 0.1}, {"solve": "width"}):
        line = refused(SMOE, DENSE | {"key": "base"} | own, baseline="base")
        assert line.startswith(f"entry 'base': {next(iter(own))} has no effect on the baseline")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"calibration_steps": 1}, "at least 2, got 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], says: str) -> None:
    assert says in refused(SMOE, **change)
