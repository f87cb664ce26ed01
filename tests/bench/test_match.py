"""Widths are solved so that budgets agree, and what is left over is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from comparable import KINDS
from libmoe.bench import Grid, load_grid
from libmoe.bench.match import match_sizes
from libmoe.bench.run import describe_sizes
from libmoe.core.errors import ConfigError
from libmoe.data import load_tokenizer
from libmoe.train.build import build_model

Mini = Callable[..., Grid]


def test_the_quickstart_is_matched_within_one_percent() -> None:
    grid = load_grid("quickstart")
    sizes = match_sizes(grid)
    active = sizes["dense"].cost.active_params
    for key, matched in sizes.items():
        if key not in ("dense", "dense-wide"):
            assert matched.cost.active_params == pytest.approx(active, rel=0.01), key
            assert matched.residual == matched.cost.active_params / active - 1
    assert sizes["dense-wide"].cost.total_params == pytest.approx(sizes["smoe"].cost.total_params, rel=0.01)
    assert sizes["dense"].residual is None
    assert any("off target +" in line and "remoe" in line for line in describe_sizes(sizes))


@pytest.mark.parametrize("name", KINDS)
def test_a_method_can_be_added_and_matched_to_a_dense_model(name: str) -> None:
    grid = load_grid("quickstart")
    grid.entries = [entry for entry in grid.entries if entry.key in ("dense", "smoe")]
    grid.add_method(name)
    sizes = match_sizes(grid)
    assert sizes[name].cost.active_params == pytest.approx(sizes["dense"].cost.active_params, rel=0.01)


def test_sizes_counted_without_weights_are_those_of_the_model_that_is_trained(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    for key, matched in match_sizes(grid).items():
        recipe = grid.cell_recipe(grid.entry(key), 0, matched.options)
        model = build_model(recipe, len(load_tokenizer()))
        assert sum(parameter.numel() for parameter in model.parameters()) == matched.cost.total_params


@pytest.mark.parametrize("what", ["active_params", "total_params", "flops"])
def test_each_budget_can_be_met(what: str, mini: Mini) -> None:
    grid = mini("dense", "smoe", match=what)
    sizes = match_sizes(grid)
    counted = {"flops": "flops_per_token"}.get(what, what)
    dense, smoe = (getattr(sizes[key].cost, counted) for key in ("dense", "smoe"))
    assert smoe == pytest.approx(dense, rel=0.02)


def test_a_width_that_is_given_stays_and_its_mismatch_is_told(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    grid.entry("smoe").options["expert_hidden"] = 20
    matched = match_sizes(grid)["smoe"]
    assert matched.options["expert_hidden"] == 20
    assert matched.residual is not None and matched.residual < -0.01


def test_nothing_is_solved_without_a_budget(mini: Mini) -> None:
    matched = match_sizes(mini("dense", "smoe", match="none"))["smoe"]
    assert "expert_hidden" not in matched.options and matched.residual is None


def test_a_budget_that_no_width_meets_is_refused(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    grid.entry("smoe").options |= {"num_experts": 3000, "top_k": 3000}
    with pytest.raises(ConfigError, match=r"entry 'smoe': even expert_hidden=1 has .* above the budget of"):
        match_sizes(grid)
