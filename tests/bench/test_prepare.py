"""Models that a comparison starts from are trained first, in order, and once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from libmoe.bench import load_grid, run_grid
from libmoe.bench.cell import CellSpec
from libmoe.bench.prepare import prepare
from libmoe.bench.prepared import Prepared
from libmoe.core.errors import ConfigError, LibMoEError

TINY = [
    "train.steps=2", "train.warmup_steps=0", "train.log_every=1", "train.eval_every=null", "eval.windows_per_domain=1",
    "eval.tasks=[]", "eval.sample_documents=0", 'data.domains=["novel", "code"]', "data.seq_len=32",
    "backbone.hidden_size=32", "backbone.intermediate_size=64",
]  # fmt: skip


class Trainer:
    """Notes what it was asked to train; ``lost`` fail, ``handed`` are not over yet."""

    def __init__(self, lost: Sequence[str] = (), handed: Sequence[str] = ()) -> None:
        self.waves: list[list[str]] = []
        self.lost, self.handed = lost, handed

    def __call__(self, cells: Sequence[CellSpec]) -> dict[str, dict[str, Any]]:
        self.waves.append([spec.key for spec in cells])
        return {
            spec.run_dir: {"status": "failed" if spec.key in self.lost else "ok", "error": "out of luck"}
            for spec in cells
            if spec.key not in self.handed
        }


def chain(tmp_path: Path) -> list[Prepared]:
    """Two stages of two models, in an order that begins with the ends."""

    def item(name: str, start: str | None = None) -> Prepared:
        at = [f"backbone.checkpoint={tmp_path / start / 'model'}"] if start else []
        return Prepared("upcycling-dense", str(tmp_path / name), at)

    return [item("b2", "b1"), item("a1"), item("a2", "a1"), item("b1")]


def test_what_starts_from_another_waits_for_it_and_the_others_run_at_once(tmp_path: Path) -> None:
    trainer = Trainer()
    prepare(chain(tmp_path), [], 1, trainer)
    assert trainer.waves == [["a1", "b1"], ["b2", "a2"]]


def test_nothing_starts_from_what_failed_or_is_not_over(tmp_path: Path) -> None:
    trainer = Trainer(lost=["b1"])
    with pytest.raises(LibMoEError, match="b1, which others start from, failed: out of luck"):
        prepare(chain(tmp_path), [], 1, trainer)
    assert trainer.waves == [["a1", "b1"]]
    trainer = Trainer(handed=["a1"])
    prepare(chain(tmp_path), [], 1, trainer)
    assert trainer.waves == [["a1", "b1"]]


def test_a_circle_is_refused(tmp_path: Path) -> None:
    itself = Prepared("upcycling-dense", str(tmp_path / "a"), [f"backbone.checkpoint={tmp_path / 'a' / 'model'}"])
    with pytest.raises(ConfigError, match="a starts from a run that starts from it"):
        prepare([itself], [], 1, Trainer())


def test_a_grid_trains_the_model_that_it_starts_from_once(tmp_path: Path) -> None:
    """The cells go on from the prepared model, and a second call runs nothing."""
    dense, recipe = tmp_path / "dense", {"backbone": {"checkpoint": str(tmp_path / "dense" / "model")}}
    for line in TINY:
        (section, key), value = line.partition("=")[0].split("."), yaml.safe_load(line.partition("=")[2])
        recipe.setdefault(section, {})[key] = value
    grid = {
        "name": "from-dense",
        "seeds": [0],
        "workers": 1,
        "match": "none",
        "reference": "smoe",
        "prepare": [{"recipe": "upcycling-dense", "out": str(dense), "set": TINY}],
        "entries": [
            {"method": "dense"},
            {"method": "smoe", "options": {"num_experts": 2}, "recipe": {"method": {"init": "copy"}}},
        ],
        "recipe": recipe,
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    said: list[str] = []

    def run() -> None:
        run_grid(load_grid(tmp_path / "grid.yaml"), tmp_path / "out", say=said.append, live=False)

    run()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["status"] for row in results["rows"]] == ["ok", "ok"]
    (stage,) = results["protocol"]["stages"]
    assert (stage["run"], stage["trains"], stage["steps"]) == (str(dense), None, 2)
    assert stage["train_seconds"] > 0 and stage["peak_memory_bytes"] > 0 and stage["bits_per_byte"] > 0
    first = json.loads((tmp_path / "out" / "smoe-s0" / "metrics.jsonl").read_text().splitlines()[0])
    same = json.loads((tmp_path / "out" / "dense-s0" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(same["loss"], abs=1e-5), "upcycled and dense start from one model"
    before = (dense / "result.json").stat().st_mtime_ns
    said.clear()
    run()
    assert (dense / "result.json").stat().st_mtime_ns == before
    assert sum("cells are done already" in line for line in said) == 2
