"""Budgets over a whole grid: who sets the target, what is solved, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench.budgets import Calibrator, Steps
from libmoe.bench.budgets.calibration import measure_steps
from libmoe.bench.grid import Grid
from libmoe.bench.match import Matched, match_sizes
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError
from libmoe.train.build import load_data
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


def test_tokens_per_parameter_of_the_baseline_set_the_length_of_the_others() -> None:
    own = {"key": "base", "tokens_per_param": 0.25}
    sizes = sizes_of(DENSE | own, SMOE, baseline="base", match="train_flops")
    assert sizes["base"].tokens_per_param == pytest.approx(0.25, rel=0.01) and sizes["base"].steps != 300
    assert sizes["smoe"].train_flops == pytest.approx(sizes["base"].train_flops, rel=0.01)


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


# -- memory ----------------------------------------------------------------------------------------------
def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    def growing(recipe: Recipe, steps: int) -> Steps:
        width = recipe.method.options.get("expert_hidden", 100)
        return Steps([0.01] * steps, 10_000 + 10 * width)

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
