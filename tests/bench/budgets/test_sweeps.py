"""Sweeps: one number varies, and what is matched stays."""

from __future__ import annotations

from typing import Any

import pytest

from budgeted import DENSE, SMOE, grid_of, refused, sizes_of
from libmoe.bench.grid import Grid
from libmoe.bench.match import match_sizes
from libmoe.core.config import build, to_dict


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
