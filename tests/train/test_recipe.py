from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.core.errors import ConfigError
from libmoe.train.recipe import Recipe, TrainConfig, load_recipe, micro_batches, packaged, save_recipe


@pytest.mark.parametrize("name", sorted(packaged("recipes")))
def test_packaged_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_a_saved_recipe_reads_back_equal(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    original = recipe("train.lr=1e-4", "method.where=[1]", 'data.mixture={"a": 0.5, "b": 1}', "train.clip=null")
    save_recipe(original, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == original
    assert original.train.lr == 1e-4


def test_a_recipe_file_is_named_after_itself(tmp_path: Path) -> None:
    text = (packaged("recipes")["tiny"]).read_text().replace("name: tiny", "", 1)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "a recipe is a mapping of keys, got list"),
        ("backbone: {}\ntrain: {stepz: 3}", "unknown key 'train.stepz'; did you mean 'steps'"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'tinny'; did you mean 'tiny'"):
        load_recipe("tinny")


def test_batches_are_cut_evenly_or_refused() -> None:
    assert micro_batches(TrainConfig(batch_size=8), 1) == 1
    assert micro_batches(TrainConfig(batch_size=8), 2) == 1
    assert micro_batches(TrainConfig(batch_size=8, micro_batch_size=1), 2) == 4
    with pytest.raises(ConfigError, match="not divisible by micro_batch_size=8 x 2 process"):
        micro_batches(TrainConfig(batch_size=8, micro_batch_size=8), 2)
    with pytest.raises(ConfigError, match="use batch_size=12"):
        micro_batches(TrainConfig(batch_size=8), 12)
