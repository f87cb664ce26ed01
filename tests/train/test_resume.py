"""Kill -9, Ctrl-C and reruns: an interrupted run ends exactly like one that was never disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.train import train
from libmoe.train.checkpoint import list_steps, verify
from libmoe.train.recipe import Recipe

Make = Callable[..., Recipe]
STEPS = 40
LONG = (f"train.steps={STEPS}", "train.save_every=4", "method.options.noise=gaussian", "train.schedule=wsd")


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def weights(run: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted((run / "model").glob("*.safetensors")))


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive(), f"the run ended early with exit code {process.exitcode}"
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.002)



def test_kill_9_at_random_steps_changes_nothing(recipe: Make, start: Any, tmp_path: Path) -> None:
    """The recipe has routing noise, so this also covers random numbers."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe(*LONG), whole, quiet=True)
    for _ in range(4):
        at = len(lines(killed)) + random.randint(1, 7)  # beyond what earlier attempts have written
        process = start(recipe(*LONG), killed)
        wait_for(lambda at=at: len(lines(killed)) >= at, process)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.join()
        assert not (killed / "result.json").exists()
    result = train(recipe(*LONG), killed, quiet=True)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert weights(killed) == weights(whole)
    assert result.steps == STEPS
    timing = [json.loads(line)["step"] for line in (killed / "timing.jsonl").read_text().splitlines()]
    assert timing == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    recipe: Make, start: Any, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    patient = recipe("train.steps=100000", "train.save_every=100000")
    process = start(patient, run)
    wait_for(lambda: len(lines(run)) >= 3, process)
    os.kill(process.pid, number)
    process.join(timeout=30)
    assert process.exitcode == code
    last = lines(run)[-1]["step"]
    assert list_steps(run / "checkpoints") == [last]
    assert "run the same command again to resume" in (tmp_path / "run.stderr0").read_text()


def test_a_finished_run_is_not_run_again(recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = train(recipe(), tmp_path, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert train(recipe(), tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert "is finished; --overwrite trains it anew" in capsys.readouterr().err


def test_another_recipe_is_refused_by_its_first_difference(recipe: Make, tmp_path: Path) -> None:
    train(recipe(), tmp_path, quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    other = recipe("train.lr=0.5")
    with pytest.raises(ConfigError, match=r"another recipe: train\.lr was 0\.003, now 0\.5"):
        train(other, tmp_path, quiet=True)
    train(other, tmp_path, overwrite=True, quiet=True)
    assert lines(tmp_path)[-1]["lr"] == pytest.approx(0.05)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_never_refuses_a_folder_with_checkpoints(recipe: Make, tmp_path: Path) -> None:
    train(recipe(), tmp_path, resume="never", quiet=True)
    with pytest.raises(CheckpointError, match="holds step-00000006; resume from it, or --overwrite"):
        train(recipe(), tmp_path, resume="never", quiet=True)


def test_a_changed_environment_is_mentioned(recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(recipe(), tmp_path)
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "result.json").unlink()
    environment = json.loads((tmp_path / "env.json").read_text())
    (tmp_path / "env.json").write_text(json.dumps(environment | {"torch": "2.9.0"}))
    train(recipe(), tmp_path)
    assert "warning: torch was '2.9.0', now" in capsys.readouterr().err


def test_resuming_from_a_named_checkpoint_repeats_what_came_after(recipe: Make, tmp_path: Path) -> None:
    keep = recipe("train.keep_checkpoints=9")
    train(keep, tmp_path, quiet=True)
    metrics, final = (tmp_path / "metrics.jsonl").read_bytes(), weights(tmp_path)
    train(keep, tmp_path, resume="step-00000002", quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    assert weights(tmp_path) == final
    with pytest.raises(CheckpointError, match=r"no checkpoint 'step-00000003' in .*; nearest: 'step-0000000"):
        train(keep, tmp_path, resume="step-00000003", quiet=True)


def test_older_checkpoints_may_keep_the_model_alone(recipe: Make, tmp_path: Path) -> None:
    whole, lean = tmp_path / "whole", tmp_path / "lean"
    train(recipe("train.keep_checkpoints=9"), whole, quiet=True)
    keep = recipe("train.keep_checkpoints=9", "train.keep_optimizers=1")
    train(keep, lean, quiet=True)
    files = {p.parent.name: p.read_bytes() for p in (whole / "checkpoints").glob("*/model.safetensors")}
    assert files == {p.parent.name: p.read_bytes() for p in (lean / "checkpoints").glob("*/model.safetensors")}
    assert [p.parent.name for p in (lean / "checkpoints").glob("*/optimizer.safetensors")] == ["step-00000006"]
    for step in list_steps(lean / "checkpoints"):
        verify(lean / "checkpoints" / f"step-{step:08d}")
    (lean / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000002 keeps the model alone .* one of step-00000006"):
        train(keep, lean, resume="step-00000002", quiet=True)
    train(keep, lean, quiet=True)
    assert weights(lean) == weights(whole)


def test_a_damaged_checkpoint_is_named_with_the_one_before_it(recipe: Make, tmp_path: Path) -> None:
    train(recipe(), tmp_path, quiet=True)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "result.json").unlink()
    file = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .*--resume step-00000004") as caught:
        train(recipe(), tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    train(recipe(), tmp_path, resume="step-00000004", quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_two_processes_cannot_train_in_one_folder(recipe: Make, start: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(recipe("train.steps=100000"), run)
    wait_for(lambda: len(lines(run)) >= 1, process)
    with pytest.raises(ConfigError, match="in use by another process"):
        train(recipe("train.steps=100000"), run, quiet=True)


def test_changed_data_are_noticed(recipe: Make, text: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(text / "corpus", corpus)
    local = recipe(f"data.source={corpus}")
    train(local, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    (corpus / "prose" / "0.txt").write_text("something else altogether " * 20)
    with pytest.raises(CheckpointError, match="trained on other data"):
        train(local, tmp_path / "run", quiet=True)
