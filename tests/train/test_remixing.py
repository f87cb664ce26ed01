"""Training on a mixture that follows the routing of its domains (arXiv 2406.11256)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from libmoe.core.errors import ConfigError
from libmoe.train import load_recipe, train
from libmoe.train.recipe import Recipe, save_recipe

Make = Callable[..., Recipe]
REWEIGHT = ("data.reweight.every=3", "data.reweight.windows=6", "train.steps=12", "train.save_every=2")


@pytest.fixture(scope="session")
def three(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with its prose twice, under two names."""
    folder = tmp_path_factory.mktemp("three") / "corpus"
    shutil.copytree(text / "corpus", folder)
    shutil.copytree(folder / "prose", folder / "again")
    return folder


@pytest.fixture
def mixed(recipe: Make, three: Path) -> Make:
    return lambda *overrides: recipe(*REWEIGHT, f"data.source={three}", *overrides)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> list[dict[str, float]]:
    """Of the domains, by step."""
    return [
        {name.removeprefix("mixture/"): value for name, value in line["controllers"].items()} for line in metrics(run)
    ]


def test_the_domain_that_is_routed_like_no_other_is_read_more_often(mixed: Make, tmp_path: Path) -> None:
    train(mixed("train.keep_checkpoints=9"), tmp_path, quiet=True)
    found = weights(tmp_path)
    by_turn = found[0::3]
    assert [found[i : i + 3] for i in range(0, 12, 3)] == [[turn] * 3 for turn in by_turn]
    numbers = [turn["numbers"] for turn in by_turn]
    assert numbers == sorted(numbers) and numbers[-1] > numbers[0] + 0.01
    for turn in by_turn:
        assert sum(turn.values()) == pytest.approx(1, abs=1e-5) and min(turn.values()) > 0.05 / 3
        assert turn["prose"] == pytest.approx(turn["again"], abs=0.002)  # a round of 1,000 rows holds 333 and 334


def test_an_interrupted_run_ends_exactly_like_one_that_was_not(mixed: Make, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(mixed("train.keep_checkpoints=9"), whole, quiet=True)
    shutil.copytree(whole, cut)
    for step in (8, 6, 2):  # within a turn, at a change, before the first
        (cut / "result.json").unlink()
        train(mixed("train.keep_checkpoints=9"), cut, resume=f"step-{step:08d}", quiet=True)
        assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        files = [sorted((run / "model").glob("*.safetensors")) for run in (whole, cut)]
        assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_until_the_first_change_nothing_differs(mixed: Make, recipe: Make, three: Path, tmp_path: Path) -> None:
    noisy = ("method.options.noise=gaussian",)
    train(mixed(*noisy), tmp_path / "changing", quiet=True)
    train(recipe(*noisy, f"data.source={three}", "train.steps=12"), tmp_path / "same", quiet=True)
    lines = [[line | {"controllers": {}} for line in metrics(tmp_path / run)] for run in ("changing", "same")]
    assert lines[0][:3] == lines[1][:3] and lines[0][3:] != lines[1][3:]


def test_frozen_routers_stay_bit_for_bit(mixed: Make, tmp_path: Path) -> None:
    frozen = mixed("train.router_lr_scale=0", "train.keep_checkpoints=9")
    train(frozen, tmp_path, quiet=True)
    first, last = (load_file(tmp_path / "checkpoints" / f"step-{s:08d}" / "model.safetensors") for s in (2, 12))
    routers = [name for name in first if ".router." in name]
    assert routers and all(first[name].equal(last[name]) for name in routers)
    assert not all(first[name].equal(last[name]) for name in first)


def test_losses_over_a_reference_are_the_other_way(mixed: Make, tmp_path: Path) -> None:
    hard = 'data.reweight.reference={"prose": 5.5, "again": 5.5, "numbers": 0.5}'
    train(mixed("data.reweight.by=loss", hard), tmp_path, quiet=True)
    numbers = [turn["numbers"] for turn in weights(tmp_path)]
    assert numbers == sorted(numbers) and numbers[-1] > 0.95


@pytest.mark.distributed
def test_two_processes_agree_and_mix_like_one(mixed: Make, tmp_path: Path, run_together: Any) -> None:
    train(mixed(), tmp_path / "one", quiet=True)
    run_together(mixed("train.parallel=ddp", "train.micro_batch_size=2"), tmp_path / "two")
    for one, two in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-3)


def test_the_recipe_of_a_run_says_all_of_it(mixed: Make, tmp_path: Path) -> None:
    made = mixed("data.reweight.by=cosine", "data.reweight.inverse=true")
    save_recipe(made, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == made and made.data.reweight.rate == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.unique_tokens=640",), r"leave out data\.unique_tokens"),
        (("data.reweight.layer=2",), r"data\.reweight\.layer=2: the model has 2 MoE layers; use 0 to 1"),
        (("data.reweight.by=loss", 'data.reweight.reference={"prose": 1.0}'), "data.reweight.reference 'again'"),
        (("data.reweight.by=l3",), r"data\.reweight\.by"),
        (("method.name=dense", "method.options={}"), r"the model has 0 MoE layers"),
    ],
)
def test_what_cannot_be_reweighted_is_one_line(mixed: Make, tmp_path: Path, overrides: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(mixed(*overrides), tmp_path, quiet=True)
