"""Solved sizes are kept: whoever resumes a comparison solves nothing anew, and builds no model for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid
from libmoe.bench.match import costs, match_sizes, read_sizes, write_sizes
from libmoe.core.errors import ConfigError

Mini = Callable[..., Grid]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options of every model that is built."""
    found: list[dict[str, Any]] = []
    build_model = costs.build_model

    def noting(recipe: Any, *tokens: Any) -> Any:
        found.append({"method": recipe.method.name} | recipe.method.options)
        return build_model(recipe, *tokens)

    monkeypatch.setattr(costs, "build_model", noting)
    return found


def test_kept_sizes_are_read_back_equal_and_nothing_is_built(
    tmp_path: Path, mini: Mini, built: list[dict[str, Any]]
) -> None:
    grid = mini("dense", "smoe")
    sizes = match_sizes(grid)
    write_sizes(tmp_path, grid, sizes)
    built.clear()
    assert match_sizes(grid, known=read_sizes(tmp_path, grid)) == sizes and not built


@pytest.mark.parametrize("match", ["active_params", "memory", "active_params + total_params"])
def test_no_model_is_built_twice(match: str, mini: Mini, built: list[dict[str, Any]]) -> None:
    grid = mini("dense", "smoe", "sigmoid", match=match, tolerance=0.1)
    match_sizes(grid)
    assert built and all(built.count(one) == 1 for one in built)


def test_an_entry_that_joins_is_the_only_one_that_is_solved(
    tmp_path: Path, mini: Mini, built: list[dict[str, Any]]
) -> None:
    grid = mini("dense", "smoe")
    write_sizes(tmp_path, grid, match_sizes(grid))
    built.clear()
    grid = mini("dense", "smoe", "sigmoid")
    sizes = match_sizes(grid, known=read_sizes(tmp_path, grid))
    assert {one["method"] for one in built} == {"dense", "sigmoid"}  # the baseline sets the target
    write_sizes(tmp_path, grid, sizes)
    few = mini("dense", "sigmoid")
    write_sizes(tmp_path, few, {"sigmoid": sizes["sigmoid"]})
    assert set(read_sizes(tmp_path, grid)) == {"dense", "smoe", "sigmoid"}


@pytest.mark.parametrize(
    "change", [{"match": "flops"}, {"tolerance": 0.03}, {"wider": True}, {"baseline": "wide"}]
)
def test_sizes_for_another_budget_are_solved_anew(change: dict[str, Any], tmp_path: Path, mini: Mini) -> None:
    grid = mini("dense", "smoe")
    write_sizes(tmp_path, grid, match_sizes(grid))
    if change == {"wider": True}:
        grid.recipe.backbone.intermediate_size = 200
    elif "baseline" in change:
        grid.entry("dense").options["hidden"] = 200
    else:
        grid = mini("dense", "smoe", **change)
    assert "smoe" not in read_sizes(tmp_path, grid)


def test_seeds_labels_and_workers_decide_no_size(tmp_path: Path, mini: Mini) -> None:
    grid = mini("dense", "smoe")
    write_sizes(tmp_path, grid, match_sizes(grid))
    grid = mini("dense", "smoe", seeds=[7, 8], workers=1)
    grid.entry("smoe").label = "Softmax"
    assert set(read_sizes(tmp_path, grid)) == {"dense", "smoe"}


@pytest.mark.parametrize("text", ["[", "[]", '{"smoe": {}}', '{"smoe": 3}'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path, mini: Mini) -> None:
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sizes\.json is damaged; delete it"):
        read_sizes(tmp_path, mini("dense", "smoe"))
