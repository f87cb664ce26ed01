"""What a grid file may say, and what a method that is added takes over from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from libmoe.bench import Grid, load_grid
from libmoe.core.errors import ConfigError
from libmoe.methods import METHODS, create

Mini = Callable[..., Grid]


def test_the_quickstart_compares_seven_methods_and_two_dense_baselines() -> None:
    grid = load_grid("quickstart")
    moe = [entry for entry in grid.entries if entry.method != "dense"]
    assert (len(moe), len(grid.entries), grid.seeds) == (7, 9, [0, 1])


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_can_be_added_to_the_quickstart(name: str) -> None:
    grid = load_grid("quickstart")
    grid.entries = [entry for entry in grid.entries if entry.key != name or name in ("dense", "smoe")]
    grid.add_method(name)
    (entry,) = [entry for entry in grid.entries if entry.key == name]
    create(entry.method, entry.options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sigmoid", {"num_experts": 4, "top_k": 2}),
        ("switch", {"num_experts": 4}),  # one expert per token is what it is
        ("soft-moe", {"num_experts": 4}),
    ],
)
def test_an_added_method_shares_the_experts_it_leaves_open(
    name: str, options: dict[str, Any], mini: Mini
) -> None:
    grid = mini("dense", "smoe")
    grid.add_method(name)
    assert grid.entry(name).options == options


def test_dense_takes_over_nothing(mini: Mini) -> None:
    grid = mini("dense", "smoe", baseline="smoe")
    grid.entries = [grid.entry("smoe")]
    grid.add_method("dense")
    assert grid.entry("dense").options == {}


def test_an_alias_is_added_under_the_methods_name_and_once(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    grid.add_method("mixtral")
    grid.add_method("relu")
    assert [entry.key for entry in grid.entries] == ["dense", "smoe", "remoe"]


def test_selecting_keeps_what_sets_the_budget(mini: Mini) -> None:
    grid = mini("dense", "smoe", "sigmoid", "hash")
    grid.select(["hash"])
    assert [entry.key for entry in grid.entries] == ["dense", "hash"]
    quickstart = load_grid("quickstart")
    quickstart.select(["dense-wide"])  # its size is that of smoe in all
    assert [entry.key for entry in quickstart.entries] == ["dense", "smoe", "dense-wide"]


def test_an_entry_may_change_the_recipe_for_itself(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    grid.entry("smoe").recipe = {"train": {"lr": 1.0}, "method": {"where": "last:1"}}
    recipe = grid.cell_recipe(grid.entry("smoe"), seed=3, options={"top_k": 1})
    assert (recipe.train.lr, recipe.train.steps, recipe.method.where, recipe.seed) == (1.0, 6, "last:1", 3)
    assert recipe.method.options == {"top_k": 1} and grid.recipe.train.lr == 3e-3
    assert grid.cell_recipe(grid.entry("dense"), 0, {}).train.lr == 3e-3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is there twice"),
        ({"families": {"r": ["smoe", "dens"]}}, "families.r: unknown entry 'dens'; did you mean 'dense'?"),
        ({"families": {"r": ["smoe"]}}, "families.r: ['smoe'] is no group to compare; name two"),
        ({"families": {"r": ["smoe", "smoe"]}}, "families.r: 'smoe' is there twice"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"baseline": "dnse"}, "unknown entry 'dnse'; did you mean 'dense'?"),
        ({"match": "params"}, "unknown match 'params'; did you mean 'total_params'?"),
        ({"entries": [{"method": "dense"}, {"method": "dense"}]}, "two entries are called 'dense'"),
        ({"entries": [{"method": "dense", "key": "a/../b"}], "baseline": "a/../b"}, "a key names a folder"),
        ({"entries": [{"method": "dense", "options": {"top_k": 4}}]}, "entry 'dense': top_k has no meaning"),
        ({"entries": [{"method": "dense", "recipe": {"seed": 1}}]}, "recipe.seed is decided by 'seeds'"),
        (
            {"entries": [{"method": "dense", "recipe": {"method": {"options": {}}}}]},
            "entry 'dense': recipe.method.options has no effect",
        ),
        ({"recipe": {"method": {"name": "smoe"}}}, "recipe.method.name has no effect"),
        (
            {"entries": [{"method": "dense"}, {"method": "dense", "key": "w", "match": "total_params"}]},
            "entry 'smoe'",
        ),
    ],
)
def test_impossible_grids_are_refused(change: dict[str, Any], says: str, mini: Mini) -> None:
    with pytest.raises(ConfigError) as refused:
        mini("dense", "smoe", **change)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_wrong_recipe_of_an_entry_names_the_entry(mini: Mini) -> None:
    grid = mini("dense", "smoe")
    grid.entry("smoe").recipe = {"train": {"lrr": 1.0}}
    with pytest.raises(ConfigError, match=r"entry smoe\.train\.lrr"):
        grid.cell_recipe(grid.entry("smoe"), 0, {})


def test_an_added_method_joins_the_families_of_the_reference(mini: Mini) -> None:
    grid = mini("dense", "smoe", "hash", families={"routers": ["smoe", "hash"], "others": ["dense", "hash"]})
    grid.add_method("sigmoid")
    assert grid.families == {"routers": ["smoe", "hash", "sigmoid"], "others": ["dense", "hash"]}


def test_selecting_leaves_families_of_what_is_left(mini: Mini) -> None:
    grid = mini(
        "dense", "smoe", "hash", "sigmoid", families={"a": ["smoe", "hash", "sigmoid"], "b": ["smoe", "hash"]}
    )
    grid.select(["hash", "sigmoid"])
    assert grid.families == {"a": ["hash", "sigmoid"]}
