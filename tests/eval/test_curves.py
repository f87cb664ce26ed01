"""All checkpoints of a run: each is scored as if alone, once, and the best is held against the last honestly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.eval.curves import curve
from libmoe.eval.curves.choosing import Items
from libmoe.eval.harness import Settings
from libmoe.eval.suites import catalogue
from libmoe.eval.tasks import run_tasks
from libmoe.models import load
from libmoe.stats import paired
from libmoe.train import checkpoint, load_recipe, train

TASKS = ("moe_cloze", "moe_domain")
SETTINGS = Settings(limit=8, bootstrap=0, slice_size=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["train.steps=4", "train.warmup_steps=1", "train.save_every=1", "train.keep_checkpoints=9"]
    overrides += ["eval.windows_per_domain=1", "train.lr=0.02", 'data.domains=["novel", "code"]']
    train(load_recipe("tiny", overrides), folder, quiet=True)
    curve(folder, TASKS, SETTINGS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def points(run: Path) -> Path:
    return run / "eval" / "checkpoints"


def test_every_checkpoint_scores_what_it_scores_alone(run: Path, tokenizer: Any) -> None:
    found = json.loads((points(run) / "curve.json").read_text())
    assert [point["step"] for point in found["checkpoints"]] == [1, 2, 3, 4]
    assert found["final"] == 4 and found["failed"] == {} and found["notes"] == []
    model = load(run / "model")
    values = set()
    for point in found["checkpoints"]:
        checkpoint.restore_model(run / "checkpoints" / checkpoint.name_of(point["step"]), model)
        alone = run_tasks(model, tokenizer, TASKS, limit=8)
        for task in TASKS:
            assert point["tasks"][task]["value"] == alone[task][point["tasks"][task]["metric"].split(",")[0]]
        values.add(point["bits_per_byte"])
    assert len(values) == 4


def test_the_last_checkpoint_is_the_model_of_the_run(run: Path) -> None:
    from libmoe.eval import evaluate_run

    last = json.loads((points(run) / "curve.json").read_text())["checkpoints"][-1]
    assert last["bits_per_byte"] == pytest.approx(evaluate_run(run)["bits_per_byte"], rel=1e-9)


def test_the_best_is_held_against_the_last_item_by_item(run: Path) -> None:
    found = json.loads((points(run) / "curve.json").read_text())
    every = found["checkpoints"]
    heldout = found["heldout"]
    best = min(every, key=lambda point: point["validation"])
    assert heldout["best_by_validation"] == best["step"]
    difference = best["bits_per_byte"] - every[-1]["bits_per_byte"]
    assert heldout["by_validation"]["difference"] == pytest.approx(difference, abs=1e-9)
    for task in TASKS:
        summary, scores = found["tasks"][task], [point["tasks"][task]["value"] for point in every]
        assert summary["best"] == every[int(np.argmax(scores))]["step"]
        assert summary["difference"]["difference"] == pytest.approx(max(scores) - scores[-1])
        assert summary["difference"]["items"] == 8
        chosen = next(p for p in every if p["step"] == heldout["best_by_validation"])["tasks"][task]["value"]
        assert summary["by_validation"]["difference"] == pytest.approx(chosen - scores[-1])
        assert summary["chance"] == 0.25
        assert summary["crossfit"]["difference"] <= summary["difference"]["difference"]


def test_finished_checkpoints_are_kept_and_others_are_added(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((points(run) / "curve.json").read_text())
    shutil.rmtree(points(run) / checkpoint.name_of(2))
    restored: list[str] = []
    restore = checkpoint.restore_model
    monkeypatch.setattr(
        checkpoint,
        "restore_model",
        lambda path, model: (restored.append(path.name), restore(path, model)),
    )
    seen: list[tuple[str, int, int]] = []
    again = curve(run, TASKS, SETTINGS, lambda *progress: seen.append(progress))
    assert restored == ["step-00000002"]
    assert seen[-1] == ("step-00000002 moe_domain", 8, 8)
    assert {k: v for k, v in again.items() if k not in ("saved_to", "run")} == {
        k: v for k, v in before.items() if k != "run"
    }
    curve(run, TASKS[:1], SETTINGS)  # other tasks: samples stay, points are made anew
    assert len(restored) == 5


def test_interrupted_in_the_middle_of_a_checkpoint_nothing_is_lost(run: Path) -> None:
    before = json.loads((points(run) / "curve.json").read_text())
    shutil.rmtree(points(run))

    def stop(task: str, done: int, total: int) -> None:
        if task == "step-00000002 moe_domain" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(run, TASKS, SETTINGS, stop)
    assert (points(run) / "step-00000001" / "point.json").is_file()
    assert not (points(run) / "step-00000002" / "point.json").exists()
    again = curve(run, TASKS, SETTINGS)
    assert again["checkpoints"] == before["checkpoints"] and again["tasks"] == before["tasks"]


def test_a_damaged_checkpoint_is_named_and_the_others_go_on(run: Path) -> None:
    shutil.rmtree(points(run))
    os.truncate(run / "checkpoints" / "step-00000002" / "model.safetensors", 100)
    found = curve(run, TASKS[:1], SETTINGS)
    assert [point["step"] for point in found["checkpoints"]] == [1, 3, 4]
    assert "model.safetensors is damaged" in found["failed"]["step-00000002"]


def test_there_is_a_picture(run: Path) -> None:
    content = (points(run) / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_choosing_and_scoring_on_the_same_items_finds_gains_where_there_are_none() -> None:
    """Ten checkpoints whose scores are noise: their best looks better than the last; cross-fitted it does not."""
    gains, honest = [], []
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=(10, 40))
        items = Items(values, [str(i) for i in range(40)], higher_is_better=True)
        crossfit = items.crossfit()
        assert crossfit is not None
        gains.append(items.against_last(items.best())["difference"])
        honest.append(crossfit["difference"])
    assert np.mean(gains) > 0.2
    assert abs(np.mean(honest)) < 3 * np.std(honest) / 200**0.5


def test_clusters_stay_together_when_checkpoints_are_chosen() -> None:
    values = np.array([[1.0, 1, 0, 0, 0, 0], [0.0, 0, 1, 1, 0, 0], [0.0, 0, 0, 0, 1, 0]])
    items = Items(values, ["a", "a", "b", "b", "c", "d"], higher_is_better=True)
    # Clusters a and c are answered by what is best on b and d, which is the second row, and the other way round.
    chosen = [0.0, 0, 0, 0, 0, 0]
    assert items.best(np.array([False, False, True, True, False, True])) == 1
    assert items.best(np.array([True, True, False, False, True, False])) == 0
    expected = paired(values[-1].tolist(), chosen, ["a", "a", "b", "b", "c", "d"])
    found = items.crossfit()
    assert found is not None and found["difference"] == expected.difference and found["clusters"] == 4
    assert Items(values, ["a"] * 6, higher_is_better=True).crossfit() is None


def test_what_has_no_curve(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        curve(tmp_path, TASKS)
    image = next(task.name for task in catalogue() if task.harness == "lmms")
    with pytest.raises(ConfigError, match=f"task {image} needs images"):
        curve(run, [image])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="keeps no checkpoints"):
        curve(run, TASKS)


def test_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from libmoe.cli.curves import run as show

    show(run, TASKS, SETTINGS.facts())
    printed = capsys.readouterr()
    assert "moe_domain" in printed.out and "4 of 4 checkpoints" in printed.out
    assert ("against the last (step 4)" in printed.out) or "chooses the last" in printed.err
    assert "Saved to" in printed.err
    show(run, TASKS, SETTINGS.facts(), as_json=True)
    assert json.loads(capsys.readouterr().out)["final"] == 4
