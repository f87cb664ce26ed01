"""Budgets over a whole grid: who sets the target, what is solved, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench.budgets import Calibration, Calibrator
from libmoe.bench.grid import Grid
from libmoe.bench.match import Matched, match_sizes
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError
from libmoe.train.recipe import Recipe

BACKBONE = {
    "architecture": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
RECIPE = {
    "backbone": BACKBONE,
    "data": {"seq_len": 64, "domains": ["novel"]},
    "train": {"steps": 300, "batch_size": 2, "warmup_steps": 10, "threads": 1},
}
DENSE: dict[str, Any] = {"method": "dense"}
SMOE: dict[str, Any] = {"method": "smoe", "options": {"num_experts": 8, "top_k": 2}}


def grid_of(*entries: dict[str, Any], recipe: dict[str, Any] | None = None, **more: Any) -> Grid:
    values = {"name": "mini", "recipe": recipe or RECIPE, "entries": [DENSE, *entries], "seeds": [0]} | more
    return build(Grid, values)


def sizes_of(*entries: dict[str, Any], **more: Any) -> dict[str, Matched]:
    return match_sizes(grid_of(*entries, **more))


def refused(*entries: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sizes_of(*entries, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- one quantity ----------------------------------------------------------------------------------------
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


def test_equal_parameters_compute_and_data_repeat_the_data() -> None:
    sizes = sizes_of(SMOE, match="equal_ncd")
    dense, smoe = sizes["dense"], sizes["smoe"]
    assert smoe.cost.total_params == pytest.approx(dense.cost.total_params, rel=0.01)
    assert smoe.train_flops == pytest.approx(dense.train_flops, rel=0.01)
    assert smoe.unique_tokens == dense.tokens
    ratio = dense.cost.flops_per_token / smoe.cost.flops_per_token
    assert smoe.epochs == pytest.approx(ratio, rel=0.01) and ratio > 1.1
    assert dense.unique_tokens is None


def test_sparser_models_train_on_more_tokens_at_equal_compute() -> None:
    entries = [SMOE | {"key": f"k{k}", "options": {"num_experts": 8, "top_k": k}} for k in (8, 4, 2, 1)]
    sizes = sizes_of(*entries, match="equal_ncd")
    steps = [sizes[f"k{k}"].steps for k in (8, 4, 2, 1)]
    assert steps == sorted(steps) and steps[0] <= 300 * 1.01 < steps[-1]


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


# -- sweeps ----------------------------------------------------------------------------------------------
def sweep(kind: str, values: list[float], **more: Any) -> dict[str, Any]:
    return {"kind": kind, "values": values, "options": SMOE["options"]} | more


def test_an_isoflop_sweep_varies_the_experts_alone() -> None:
    sizes = sizes_of(sweeps=[sweep("isoflop", [2, 8, 32])])
    assert list(sizes) == ["dense", "smoe-e2", "smoe-e8", "smoe-e32"]
    flops = sizes["dense"].cost.flops_per_token
    swept = [sizes[f"smoe-e{n}"] for n in (2, 8, 32)]
    assert all(s.cost.flops_per_token == pytest.approx(flops, rel=0.01) for s in swept)
    totals = [s.cost.total_params for s in swept]
    assert totals == sorted(totals) and totals[-1] > 3 * totals[0]


def test_a_granularity_sweep_keeps_active_and_total_parameters() -> None:
    # The finest split has 31 or 32 hidden units, and gates of 32 experts.
    grid = grid_of(sweeps=[sweep("granularity", [1, 2, 4], tolerance=0.015)], reference="smoe-g1")
    sizes = match_sizes(grid)
    coarse, fine = sizes["smoe-g1"], sizes["smoe-g4"]
    assert fine.options["num_experts"] == 32 and fine.options["top_k"] == 8
    assert fine.options["expert_hidden"] == pytest.approx(coarse.options["expert_hidden"] / 4, rel=0.1)
    assert fine.cost.total_params == pytest.approx(coarse.cost.total_params, rel=0.015)
    assert fine.cost.active_params == pytest.approx(sizes["dense"].cost.active_params, rel=0.015)


def test_a_tokens_per_parameter_sweep_changes_steps_alone() -> None:
    sizes = sizes_of(sweeps=[sweep("tokens_per_param", [0.5, 2])])
    low, high = sizes["smoe-tpp0.5"], sizes["smoe-tpp2"]
    assert low.options == high.options
    assert (low.tokens_per_param, high.tokens_per_param) == pytest.approx((0.5, 2), rel=0.01)


def test_what_is_saved_of_a_grid_with_sweeps_is_read_back_equal() -> None:
    grid = grid_of(sweeps=[sweep("isoflop", [2, 4])])
    assert to_dict(build(Grid, to_dict(grid))) == to_dict(grid)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([2, 2], "must be different"),
        ([0], "whole numbers of at least 1, got 0"),
        ([1.5], "got 1.5"),
        ([], "different"),
    ],
)
def test_impossible_sweeps_are_refused(values: list[float], says: str) -> None:
    assert says in refused(sweeps=[sweep("isoflop", values)])


# -- time ------------------------------------------------------------------------------------------------
def planted(recipe: Recipe, steps: int) -> Calibration:
    return Calibration(0.02 if recipe.method.name == "smoe" else 0.01, 0.05, steps, 10**6)


def test_slower_steps_are_fewer_at_equal_time() -> None:
    sizes = match_sizes(grid_of(SMOE, match="active_params + wall_clock"), Calibrator(measure=planted))
    assert sizes["smoe"].steps == 150 and sizes["smoe"].residuals["wall_clock"] == pytest.approx(0)
    assert sizes["smoe"].clock_spread == 0.05  # what the match is really worth


def test_what_was_measured_once_is_kept_for_the_comparison_that_is_resumed(tmp_path: Path) -> None:
    calls: list[str] = []

    def counting(recipe: Recipe, steps: int) -> Calibration:
        calls.append(recipe.method.name)
        return replace(planted(recipe, steps), seconds_per_step=0.01 * len(calls))

    def solve() -> int:
        calibrator = Calibrator(tmp_path / "calibration.json", measure=counting)
        return match_sizes(grid_of(SMOE, match="wall_clock"), calibrator)["smoe"].steps

    assert (solve(), solve(), calls) == (150, 150, ["dense", "smoe"])
    (tmp_path / "calibration.json").write_text('{"x": 1}')
    with pytest.raises(ConfigError, match="is damaged; delete it"):
        solve()


def test_seeds_and_lengths_of_a_run_need_no_new_measurement() -> None:
    grid, calls = grid_of(SMOE), []
    calibrator = Calibrator(measure=lambda recipe, steps: calls.append(1) or planted(recipe, steps))
    recipe = grid.cell_recipe(grid.entry("smoe"), 0, {})
    calibrator(recipe)
    calibrator(replace(recipe, seed=5, name="x", train=replace(recipe.train, steps=999)))
    assert len(calls) == 1
    calibrator(replace(recipe, train=replace(recipe.train, batch_size=9)))
    assert len(calls) == 2


def test_a_real_calibration_times_real_steps() -> None:
    grid = grid_of(SMOE)
    found = Calibrator(steps=3, threads=1)(grid.cell_recipe(grid.entry("smoe"), 0, SMOE["options"]))
    assert found.steps == 3 and 1e-4 < found.seconds_per_step < 5 and found.spread >= 0


# -- memory ----------------------------------------------------------------------------------------------
def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    def growing(recipe: Recipe, steps: int) -> Calibration:
        width = recipe.method.options.get("expert_hidden", 100)
        return Calibration(0.01, 0.0, steps, 10_000 + 10 * width)

    sizes = match_sizes(grid_of(SMOE, match="memory", memory="measured"), Calibrator(measure=growing))
    assert sizes["smoe"].options["expert_hidden"] == 100


def test_memory_that_is_not_modelled_is_refused() -> None:
    train = RECIPE["train"] | {"activation_checkpointing": True}
    assert "set memory: measured" in refused(SMOE, match="memory", recipe=RECIPE | {"train": train})


# -- refusals --------------------------------------------------------------------------------------------
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


def test_steps_are_decided_once() -> None:
    both = SMOE | {"match": "train_flops", "tokens_per_param": 2.0}
    assert "both match and tokens_per_param decide the steps" in refused(both)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"calibration_steps": 1}, "at least 2, got 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], says: str) -> None:
    assert says in refused(SMOE, **change)


# -- what is given stays ---------------------------------------------------------------------------------
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
