"""Budgets over a whole grid: who sets the target, and what is solved to meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from budgeted import RECIPE, SMOE, grid_of, sizes_of
from libmoe.bench.match import match_sizes


def test_costlier_steps_are_fewer_at_equal_training_flops() -> None:
    wide = SMOE | {"key": "wide", "options": SMOE["options"] | {"expert_hidden": 400}}
    thin = SMOE | {"key": "thin", "options": SMOE["options"] | {"expert_hidden": 20}}
    sizes = sizes_of(wide, thin, match="train_flops")
    assert sizes["wide"].steps < sizes["dense"].steps == 300 < sizes["thin"].steps
    for key in ("wide", "thin"):
        assert sizes[key].train_flops == pytest.approx(sizes["dense"].train_flops, rel=0.01)
        assert sizes[key].residual == sizes[key].train_flops / sizes["dense"].train_flops - 1


def test_steps_arrive_in_the_recipe_of_each_cell() -> None:
    grid = grid_of(SMOE, match="active_params + train_flops")
    matched = match_sizes(grid)["smoe"]
    recipe = matched.recipe(grid, grid.entry("smoe"), seed=3)
    assert (recipe.train.steps, recipe.seed, recipe.method.options) == (matched.steps, 3, matched.options)
    assert grid.recipe.train.steps == 300


def test_equal_tokens_allow_for_another_batch_size() -> None:
    entry = SMOE | {"recipe": {"train": {"batch_size": 3}}}
    sizes = sizes_of(entry, match="tokens")
    assert (sizes["smoe"].steps, sizes["smoe"].tokens) == (200, sizes["dense"].tokens)


def test_the_number_of_experts_can_be_solved_instead_of_their_width() -> None:
    wide = {"method": "dense", "key": "big", "options": {"hidden": 1200}}
    fixed = SMOE | {"options": {"top_k": 2, "expert_hidden": 16}}
    sizes = sizes_of(wide, fixed, match="total_params", solve="experts", reference="big", baseline="big")
    assert sizes["smoe"].options["num_experts"] > 50
    assert sizes["smoe"].options["expert_hidden"] == 16 and abs(sizes["smoe"].residual or 1) <= 0.01


# -- two quantities --------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["switch", "deepseek-v3", "moe-plus-plus"])
def test_active_and_total_parameters_can_both_be_equal(method: str) -> None:
    sizes = sizes_of(SMOE, {"method": method}, match="active_params + total_params")
    dense, reference, found = sizes["dense"].cost, sizes["smoe"].cost, sizes[method]
    assert found.cost.active_params == pytest.approx(dense.active_params, rel=0.01)
    assert found.cost.total_params == pytest.approx(reference.total_params, rel=0.01)
    assert set(sizes["smoe"].residuals) == {"active_params"}  # it sets the total


def test_counts_agree_with_the_formulas_of_the_equal_resource_study() -> None:
    """arXiv 2506.12119, section 2: N = (4 + 3 mu) D^2 L and M = 2 N_a + 4 D S L, without router and embeddings."""
    found = sizes_of(SMOE, match="parameter_equal", recipe=RECIPE)["smoe"]
    width, dim, layers, length = found.options["expert_hidden"], 64, 2, 64
    mu, beta = 8 * width / dim, 2 * width / dim
    embedding, head = 2048 * dim, 2 * 2048 * dim  # parameters; FLOPs of the output
    router = found.cost.router_params
    norms = 5 * dim
    assert found.cost.total_params - embedding - router - norms == (4 + 3 * mu) * dim**2 * layers
    active = (4 + 3 * beta) * dim**2 * layers
    assert found.cost.active_params - embedding - router - norms == active
    flops = 2 * active + 4 * dim * length * layers
    mixing = 2 * 2 * dim * layers
    assert found.cost.flops_per_token - head - 2 * router - mixing == pytest.approx(flops, rel=1e-6)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (SMOE | {"options": SMOE["options"] | {"expert_hidden": 20}}, "active_params"),
        (SMOE | {"recipe": {"train": {"steps": 100}}}, "train_flops"),
    ],
)
def test_what_an_entry_decides_itself_stays_and_its_mismatch_is_told(
    entry: dict[str, Any], match: str
) -> None:
    matched = sizes_of(entry, match=match)["smoe"]
    assert matched.residual is not None and abs(matched.residual) > 0.01
    assert matched.options.get("expert_hidden", 20) == 20 and matched.steps in (100, 300)


def test_slots_are_counted_out_by_the_length_of_the_recipe() -> None:
    soft: dict[str, Callable[..., Any] | Any] = {"method": "soft-moe", "options": {"num_experts": 8}}
    assert sizes_of(soft)["soft-moe"].options["seq_len"] == 64
