"""Cells that started from other files than those there now are neither kept nor gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fake_executor import FakeExecutor
from libmoe.bench import Grid, run_grid
from libmoe.bench.cell import CellSpec, run_cell
from libmoe.bench.origin import changed, origin_of
from libmoe.core.errors import ConfigError
from libmoe.models import BackboneConfig, build_backbone

Mini = Callable[..., Grid]


def save(folder: Path, seed: int) -> None:
    shape = BackboneConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2, vocab_size=2048,
        max_position_embeddings=64,
    )  # fmt: skip
    build_backbone(shape, seed).save_pretrained(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint", 0)
    return tmp_path / "checkpoint"


@pytest.fixture
def grid(mini: Mini, checkpoint: Path) -> Grid:
    grid = mini("dense", match="none")
    grid.recipe.backbone = BackboneConfig(checkpoint=str(checkpoint))
    return grid


def test_a_checkpoint_that_changed_is_not_mixed_with_what_started_from_it_before(
    grid: Grid, checkpoint: Path, tmp_path: Path
) -> None:
    def again() -> list[str]:
        executor = FakeExecutor(lambda key, seed: 2.0)
        run_grid(grid, tmp_path / "out", executor=executor, say=lambda line: None, live=False)
        return executor.ran

    assert again() == ["dense-s0"] and again() == []
    save(checkpoint, 1)
    message = r"checkpoint of 'dense' has changed .* delete \S*dense-s0 to train it anew"
    with pytest.raises(ConfigError, match=message):
        again()
    save(checkpoint, 0)  # the same weights, written anew
    assert again() == []


def test_a_checkpoint_that_changed_before_its_cell_ran_fails_the_cell(
    grid: Grid, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = grid.cell_recipe(grid.entry("dense"), 0, {})
    spec = CellSpec("dense", "dense", recipe, str(tmp_path / "cell"), origin=origin_of(recipe))
    save(checkpoint, 1)
    row = run_cell(spec)
    assert row["status"] == "failed"
    assert "checkpoint of 'dense' has changed since this cell was put into the grid" in row["error"]


def test_only_files_that_make_the_model_count(grid: Grid, checkpoint: Path) -> None:
    before = origin_of(grid.recipe)
    (checkpoint / "README.md").write_text("another card")
    assert origin_of(grid.recipe) == before
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + "\n")
    assert changed(before, origin_of(grid.recipe)) == "backbone's checkpoint"


def test_of_a_cell_that_noted_nothing_nothing_is_held_against_it(grid: Grid) -> None:
    now = origin_of(grid.recipe)
    assert now["checkpoint_digest"] is not None and changed({}, now) is None


def test_weights_that_are_drawn_and_names_on_the_hub_have_no_digest(grid: Grid) -> None:
    for checkpoint in (None, "some/model"):
        recipe = replace(grid.recipe, backbone=BackboneConfig(checkpoint=checkpoint))
        assert origin_of(recipe) == {"plugin_digest": None, "checkpoint_digest": None}
