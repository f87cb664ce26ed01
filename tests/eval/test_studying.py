"""Run folders become studies by one call, and nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from libmoe.bench.grid import load_grid
from libmoe.core.errors import CheckpointError, ConfigError, DataError
from libmoe.eval import heldout_evaluator, studying
from libmoe.eval.studying import runs_in, study_runs
from libmoe.eval.tracing import Look
from libmoe.models import save
from libmoe.train import build_model, load_recipe, train

LOOK = Look(windows=1)
VOCABULARY = 2048
"""Tokens of the embedded tokenizer."""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds with two checkpoints each, and a dense run."""
    folder = tmp_path_factory.mktemp("grid")
    overrides = ["train.steps=2", "train.warmup_steps=1", "train.save_every=1", "train.keep_checkpoints=9"]
    overrides += ["eval.windows_per_domain=1", 'data.domains=["novel", "code"]', "name=grid/four"]
    for seed in (0, 1):
        train(load_recipe("tiny", [*overrides, f"seed={seed}"]), folder / f"four-s{seed}", quiet=True)
    dense = [*overrides, "method.name=dense", "method.options={}"]
    train(load_recipe("tiny", dense), folder / "dense-s0", quiet=True)
    return folder


def test_a_grid_is_studied_and_what_is_there_is_kept(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study_runs([grid], out=tmp_path, look=LOOK)
    names = [study["name"] for study in found["studies"]]
    assert {"quality", "change", "saturation", "optimality", "subtasks", "confidence"} <= set(names)
    assert set(found["missing"]) == {"encoders", "initialisation", "regimes"}
    assert len(found["notes"]) == 1 and "dense" in found["notes"][0]
    saturation = found["studies"][names.index("saturation")]["figures"][0]["series"]
    assert [line["label"] for line in saturation] == ["smoe"]
    assert saturation[0]["x"] == [1, 2] and saturation[0]["y"][-1] == 1.0
    gaps = found["studies"][names.index("optimality")]["tables"]["gaps"]
    assert gaps["layer"] == ["0", "1", "all"] * 2 and all(kept > 0 for kept in gaps["kept"])

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("libmoe.analysis.trace.recorder.Writer", never)
    monkeypatch.setattr("libmoe.eval.heldout.HeldOut.score", never)
    assert study_runs([grid], out=tmp_path, look=LOOK) == found
    stored = json.loads((tmp_path / "studies.json").read_text())
    assert [study["name"] for study in stored["studies"]] == names


def test_facts_tell_runs_apart(grid: Path, tmp_path: Path) -> None:
    runs = [str(grid / "four-s0"), str(grid / "four-s1")]
    facts = {runs[0]: {"init": "small"}, runs[1]: {"init": "large"}}
    found = study_runs(runs, ["initialisation"], out=tmp_path, look=LOOK, facts=facts)
    labels = [line["label"] for line in found["studies"][0]["figures"][0]["series"]]
    assert labels == ["smoe, small", "smoe, large"]


def test_what_facts_do_not_tell_apart_goes_by_its_entry_in_the_grid(grid: Path, tmp_path: Path) -> None:
    """The same seed, the same beginning: two sizes of one method keep the names they have in the grid."""
    changes = ["train.steps=1", "train.warmup_steps=0", "eval.windows_per_domain=1", "name=grid/two"]
    changes += ['data.domains=["novel", "code"]']
    train(load_recipe("tiny", [*changes, "method.options.num_experts=2"]), tmp_path / "two-s0", quiet=True)
    large = [*changes, "name=grid/large", "method.options.router_init_scale=9"]
    train(load_recipe("tiny", large), tmp_path / "large-s0", quiet=True)

    def labels(*runs: Path) -> list[str]:
        found = study_runs(runs, ["certainty"], out=tmp_path / "out", look=LOOK)
        return [line["label"] for line in found["studies"][0]["figures"][0]["series"]]

    assert labels(grid / "four-s0", tmp_path / "two-s0") == ["four", "two"]
    assert labels(grid / "four-s0", tmp_path / "large-s0") == ["smoe, 1x", "smoe, 9x"]


MINI = [
    "recipe.train.steps=2", "recipe.train.warmup_steps=1", "recipe.train.save_every=1", "recipe.train.eval_every=2",
    "recipe.train.batch_size=2", "recipe.data.seq_len=32", 'recipe.data.domains=["novel", "math"]',
    "recipe.eval.windows_per_domain=1", "recipe.eval.sample_documents=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped suite in miniature: two of its routers in both regimes, one of them in two beginnings, two seeds."""
    folder = tmp_path_factory.mktemp("suite")
    short = [line.removeprefix("recipe.") for line in MINI]
    save(build_model(load_recipe("upcycling-dense", short), VOCABULARY), folder / "dense")
    grid = load_grid("expert-study", [*MINI, f"recipe.backbone.checkpoint={folder / 'dense'}"])
    for key in ("smoe", "smoe-upcycled", "sigmoid", "sigmoid-upcycled", "smoe-certain"):
        for seed in (0, 1):
            entry = grid.entry(key)
            train(
                grid.cell_recipe(entry, seed, entry.options), folder / "runs" / f"{key}-s{seed}", quiet=True
            )
    return folder / "runs"


@pytest.mark.slow
def test_the_shipped_suite_is_studied_without_mixing_regimes_and_beginnings(
    suite: Path, tmp_path: Path
) -> None:
    names = ["regimes", "initialisation", "saturation", "quality"]
    found = study_runs([suite], names, out=tmp_path, look=LOOK)
    by_name = {study["name"]: study for study in found["studies"]}
    differences = by_name["regimes"]["tables"]["differences"]
    assert set(differences["method"]) == {"smoe", "sigmoid"}
    assert set(zip(differences["from"], differences["to"])) == {("from scratch", "upcycled")}
    bits = {
        (line["label"], step): value
        for line in by_name["quality"]["figures"][0]["series"]
        for step, value in zip(line["x"], line["y"])
    }
    place = list(zip(differences["method"], differences["measure"])).index(("smoe", "bits per byte"))
    assert differences["before"][place] == pytest.approx(bits["smoe, from scratch, 1x", 2])
    assert differences["after"][place] == pytest.approx(bits["smoe, upcycled, 1x", 2])
    assert "Only runs with init 1x are compared; 2 with init 30x are left out." in by_name["regimes"]["text"]
    began = by_name["initialisation"]
    assert [line["label"] for line in began["figures"][0]["series"]] == ["smoe, 30x", "smoe, 1x"]
    assert "4 with regime upcycled are left out. Methods that began in one way only" in began["text"]
    ends = began["tables"]["differences"]
    assert set(zip(ends["method"], ends["from"], ends["to"])) == {("smoe", "1x", "30x")}
    assert all(study["found"] for study in found["studies"])
    assert [run["run"] for run in found["runs"]] == [str(path) for path in sorted(suite.iterdir())]


def test_what_cannot_be_studied_is_one_line(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'saturation'"):
        study_runs([grid], ["saturatoin"], out=tmp_path)
    with pytest.raises(ConfigError, match="is a dense model"):
        study_runs([grid / "dense-s0"], out=tmp_path, look=LOOK)
    with pytest.raises(DataError, match="regime: the runs have 1 values"):
        study_runs([grid / "four-s0"], ["regimes"], out=tmp_path, look=LOOK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds neither a run, nor a model, nor runs of a grid"):
        runs_in(tmp_path / "empty")
    monkeypatch.setattr(studying, "runs_in", lambda spec: [])
    with pytest.raises(DataError, match="no run with experts to study"):
        study_runs([grid], out=tmp_path)


def test_quality_that_the_run_logged_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["train.steps=2", "train.warmup_steps=0", "train.save_every=1", "train.eval_every=1"]
    changes += ["train.keep_checkpoints=9", "eval.windows_per_domain=1", 'data.domains=["novel", "code"]']
    recipe = load_recipe("tiny", changes)
    train(recipe, tmp_path / "run", quiet=True, evaluate=heldout_evaluator(recipe))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["eval"]["bits_per_byte"] for line in lines if "eval" in line}

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(studying, "curve", never)
    found = study_runs([tmp_path / "run"], ["quality"], out=tmp_path, look=LOOK)
    (line,) = found["studies"][0]["figures"][0]["series"]
    assert dict(zip(line["x"], line["y"], strict=True)) == pytest.approx(logged) and set(logged) == {1, 2}
    with pytest.raises(AssertionError, match="computed again"):
        study_runs([tmp_path / "run"], ["quality"], out=tmp_path, look=LOOK, tasks=["moe_cloze"])
