"""Tuning with real runs, and the text that they are judged on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid
from libmoe.bench.cell import CellSpec, finished_row, run_cell
from libmoe.bench.match import match_sizes
from libmoe.bench.tuning.text import describe_shared, shared_documents
from libmoe.bench.tuning.tuner import tune
from libmoe.data import load_corpus
from libmoe.data.overlap import overlaps
from libmoe.eval.heldout import HeldOut, open_data
from libmoe.models import load_any
from libmoe.train.recipe import DataConfig

Mini = Callable[..., Grid]


def run_here(specs: list[CellSpec]) -> Mapping[str, dict[str, Any]]:
    return {spec.run_dir: finished_row(spec) or run_cell(spec) for spec in specs}


def test_two_real_trials_choose_by_validation_and_leave_the_final_text_alone(
    mini: Mini, tmp_path: Path
) -> None:
    grid = mini("dense", tuning={"knobs": {"train.lr": [1e-6, 1e-2]}, "share": 0.5})
    sizes = match_sizes(grid)
    tuned = tune(grid, sizes, tmp_path, run_here, lambda line: None)["dense"]
    assert tuned.chosen == {"train.lr": 1e-2} and tuned.trials == 2
    assert tuned.train_flops == pytest.approx(sizes["dense"].train_flops)  # two trials of half the steps
    final = tuned.apply(sizes["dense"].recipe(grid, grid.entry("dense"), seed=0))
    assert (final.train.lr, final.train.steps, final.seed) == (1e-2, 6, 0)

    best = json.loads((tmp_path / "tuning.json").read_text())["entries"]["dense"]["runs"][1]
    corpus, _ = open_data(grid.recipe.data)
    validation = HeldOut(corpus["validation"], grid.recipe.data.seq_len, grid.recipe.eval.windows_per_domain)
    model = load_any(tmp_path / best["folder"] / "model")
    assert best["score"] == pytest.approx(validation.score(model)["bits_per_byte"], rel=1e-6)


def test_trials_are_judged_on_documents_that_are_in_no_other_split() -> None:
    data = DataConfig()
    assert shared_documents(data) == {"train": 0, "test": 0, "of": 243}
    corpus = load_corpus(data.source)
    final = [text for texts in corpus["test"].values() for text in texts]
    judged = [text for texts in corpus["validation"].values() for text in texts]
    assert not any(overlaps(judged, final))


def test_text_that_a_source_brings_twice_is_told(tmp_path: Path) -> None:
    for split, words in {"train": "abc", "validation": "cde", "test": "efd"}.items():
        (tmp_path / split).mkdir()
        documents = "".join(json.dumps({"text": word * 30}) + "\n" for word in words)
        (tmp_path / split / "prose.jsonl").write_text(documents)
    shared = shared_documents(DataConfig(source=str(tmp_path)))
    assert shared == {"train": 1, "test": 2, "of": 3}
    assert describe_shared(shared) == (
        "warning: of the 3 validation documents that tuning is judged on, 1 in the train split and 2 in the test split "
        "too; take them out of the data"
    )


def test_a_source_without_splits_is_cut_into_documents_that_are_in_one_only(tmp_path: Path) -> None:
    documents = [
        f"document {i % 70} with words of its own" for i in range(100)
    ]  # thirty of them are there twice
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    shared = shared_documents(DataConfig(source=str(tmp_path / "prose.jsonl")))
    assert (shared["train"], shared["test"]) == (0, 0) and shared["of"] >= 3
