"""What `libmoe bench` says is right, and its options count or are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_executor import FakeExecutor
from libmoe.bench import load_grid, run_grid
from libmoe.train.recipe import packaged

Libmoe = Callable[..., Any]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "mini.yaml"
    backbone = {
        "architecture": "llama", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    entries = [{"method": "dense"}, {"method": "smoe", "recipe": {"train": {"steps": 9}}}]
    recipe = {"backbone": backbone, "data": {"seq_len": 32, "domains": ["novel"]}, "train": {"steps": 6}}
    file.write_text(yaml.safe_dump({"seeds": [0], "match": "none", "entries": entries, "recipe": recipe}))
    return file


@pytest.fixture
def done(grid: Path, tmp_path: Path) -> Path:
    """The folder of that grid, finished."""
    out = tmp_path / "out"
    run_grid(
        load_grid(grid), out, executor=FakeExecutor(lambda key, seed: 2.0), say=lambda line: None, live=False
    )
    return out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of :func:`run_grid`, which it does not reach."""
    options: dict[str, Any] = {}

    def note(*arguments: Any, **more: Any) -> None:
        options.update(more)
        sys.exit(0)

    monkeypatch.setattr("libmoe.bench.run_grid", note)
    return options


def test_the_help_names_every_shipped_grid(libmoe: Libmoe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    words = libmoe("bench", "--help").out.split()
    assert all(any(word.strip(",.") == name for word in words) for name in packaged("recipes/grids"))


def test_a_grid_like_no_other_is_refused_with_the_list_of_shipped_ones(libmoe: Libmoe) -> None:
    line = libmoe("bench", "xyz").error()
    assert "unknown grid 'xyz'; choose one of: " in line
    assert all(name in line for name in packaged("recipes/grids"))


def test_steps_are_told_for_each_entry(libmoe: Libmoe, grid: Path, done: Path) -> None:
    said = libmoe("bench", grid, "--out", done).err.splitlines()
    assert said[0] == f"2 methods x 1 seeds -> {done}"
    steps = {line.split()[0]: line.partition(" steps")[0].split()[-1] for line in said if " steps" in line}
    assert steps == {"dense": "6", "smoe": "9"}


def test_seeds_that_may_be_added_are_told_as_such(libmoe: Libmoe, grid: Path, asked: dict[str, Any]) -> None:
    said = libmoe("bench", grid, "--set", "until={}").err
    assert "2 methods x up to 8 seeds" in said


@pytest.mark.parametrize(("option", "value"), [("--gpus", 1), ("--memory-gb", 4)])
def test_what_only_a_cluster_gives_is_refused_on_this_machine(
    option: str, value: int, libmoe: Libmoe, grid: Path, tmp_path: Path
) -> None:
    line = libmoe("bench", grid, "--out", tmp_path / "out", option, value).error()
    assert option.strip("-").replace("-", "_") in line and "--ray" in line and "--slurm" in line
    assert not (tmp_path / "out").exists()


def test_with_nothing_to_submit_the_report_is_written(libmoe: Libmoe, grid: Path, done: Path) -> None:
    outcome = libmoe("bench", grid, "--out", done, "--slurm", done.parent / "jobs")
    assert outcome.code == 0 and "All 2 cells are done already; there is nothing to run." in outcome.err
    assert "sbatch" not in outcome.err and "When the" not in outcome.err
    assert (done / "report.html").exists() and not (done.parent / "jobs").exists()


def test_cells_to_submit_are_told_with_what_to_do_then(libmoe: Libmoe, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = libmoe("bench", grid, "--out", out, "--slurm", tmp_path / "jobs")
    assert outcome.code == 0 and "Submit them with: sbatch" in outcome.err
    assert "When the 2 jobs have ended, the same command without --slurm goes on" in outcome.err
    assert not (out / "report.html").exists()


def test_evaluations_go_into_the_results_store_unless_told_otherwise(
    libmoe: Libmoe, grid: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBMOE_RESULTS", "some/where.db")
    for options, expected in (
        ([], Path("some/where.db")),
        (["--store", "mine.db"], Path("mine.db")),
        (["--no-store"], None),
    ):
        libmoe("bench", grid, *options)
        assert asked["store"] == expected
    line = libmoe("bench", grid, "--store", "mine.db", "--no-store").error()
    assert "--store mine.db and --no-store exclude each other" in line
