"""Equal parameters, compute and data: the baseline's own data again and again."""

from __future__ import annotations

import pytest

from budgeted import RECIPE, SMOE, grid_of, refused, sizes_of
from libmoe.bench.match import match_sizes
from libmoe.train.build import load_data


def test_equal_parameters_compute_and_data_repeat_the_data() -> None:
    grid = grid_of(SMOE, match="equal_ncd")
    sizes = match_sizes(grid)
    dense, smoe = sizes["dense"], sizes["smoe"]
    assert smoe.cost.total_params == pytest.approx(dense.cost.total_params, rel=0.01)
    assert smoe.train_flops == pytest.approx(dense.train_flops, rel=0.01)
    ratio = dense.cost.flops_per_token / smoe.cost.flops_per_token
    assert smoe.tokens / dense.tokens == pytest.approx(ratio, rel=0.01) and ratio > 1.1
    assert (dense.unique_tokens, smoe.unique_tokens) == (None, dense.tokens)

    seen = {}
    for key, matched in sizes.items():
        recipe = matched.recipe(grid, grid.entry(key), seed=5)
        assert recipe.train.steps == matched.steps
        loader = load_data(recipe).loader
        rows = [
            row.numpy().tobytes() for step in range(matched.steps) for row in loader.batch(step)["input_ids"]
        ]
        seen[key] = rows
    assert set(seen["smoe"]) == set(seen["dense"]) and len(set(seen["dense"])) == 600
    assert seen["smoe"][:600] == seen["dense"] and len(seen["smoe"]) == 2 * smoe.steps


def test_a_baseline_that_repeats_its_own_data_has_none_to_hold_equal() -> None:
    train = RECIPE["train"] | {"steps": 10_000}
    line = refused(SMOE, match="equal_ncd", recipe=RECIPE | {"train": train})
    assert line.startswith("entry 'smoe': unique_tokens=1280000 is more than the") and "use at most" in line


def test_a_limit_on_data_that_the_recipe_sets_holds_for_repeated_data_too() -> None:
    data = RECIPE["data"] | {"unique_tokens": 6400}
    assert sizes_of(SMOE, match="equal_ncd", recipe=RECIPE | {"data": data})["smoe"].unique_tokens == 6400


def test_sparser_models_train_on_more_tokens_at_equal_compute() -> None:
    entries = [SMOE | {"key": f"k{k}", "options": {"num_experts": 8, "top_k": k}} for k in (8, 4, 2, 1)]
    sizes = sizes_of(*entries, match="equal_ncd")
    steps = [sizes[f"k{k}"].steps for k in (8, 4, 2, 1)]
    assert steps == sorted(steps) and steps[0] <= 300 * 1.01 < steps[-1]
