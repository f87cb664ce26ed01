"""What a budget may say."""

from __future__ import annotations

import pytest

from libmoe.bench.budgets import Goal, Solve, parse_budget
from libmoe.core.errors import ConfigError


def test_each_quantity_has_its_usual_knob() -> None:
    assert parse_budget("flops").goals == (Goal("flops", "width"),)
    assert parse_budget("wall_clock").goals == (Goal("wall_clock", "steps"),)
    assert parse_budget("total_params", "experts").goals == (Goal("total_params", "experts", "reference"),)
    assert parse_budget("none").goals == ()


def test_two_quantities_have_two_knobs() -> None:
    assert [g.knob for g in parse_budget("active_params + train_flops").goals] == ["width", "steps"]
    assert [g.knob for g in parse_budget("active_params+total_params").goals] == ["width", "experts"]
    assert [g.knob for g in parse_budget("active_params + total_params", "width").goals] == ["width", "width"]


def test_budgets_that_papers_named_are_measured_by_the_dense_baseline() -> None:
    assert not parse_budget("parameter_equal").uses_reference
    ncd = parse_budget("equal_ncd")
    assert [g.quantity for g in ncd.goals] == ["total_params", "train_flops"] and ncd.same_data


@pytest.mark.parametrize(
    ("match", "solve", "says"),
    [
        ("activ_params", "auto", "unknown match 'activ_params'; did you mean 'active_params'?"),
        ("active_params", "steps", "active_params does not depend on steps; solve: width or experts"),
        ("tokens", "width", "tokens does not depend on width; solve: steps"),
        ("tokens + train_flops", "auto", "tokens and train_flops are both met by steps"),
        ("flops + flops", "auto", "must be one quantity or two different ones"),
        ("flops + memory + tokens", "auto", "must be one quantity or two different ones"),
        ("none + flops", "auto", "'none' stands alone"),
        ("equal_ncd", "steps", "'equal_ncd' decides what is solved"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(match: str, solve: Solve, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_budget(match, solve)
    assert says in str(refused.value) and "\n" not in str(refused.value)
