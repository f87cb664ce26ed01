"""What goes wrong outside the code: bad recipes, loss that is not finite, full disks, missing packages."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from libmoe.controllers import Controller, StepInfo
from libmoe.core.errors import ConfigError, TrainingError
from libmoe.train import train
from libmoe.train.checkpoint import list_steps, verify
from libmoe.train.metrics import JsonLines
from libmoe.train.recipe import Recipe

Make = Callable[..., Recipe]
FULL = Path("/dev/full")


class Poison(Controller):
    """Puts a NaN into a weight before step ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_step(self, info: StepInfo) -> None:
        if info.step == self.at:
            with torch.no_grad():
                info.model.model.norm.weight[0] = float("nan")


@pytest.fixture
def with_controller(monkeypatch: pytest.MonkeyPatch) -> Callable[[Controller], None]:
    from libmoe.methods.smoe import SMoE

    return lambda controller: monkeypatch.setattr(SMoE, "build_controllers", lambda self: [controller])


def test_a_loss_that_is_not_finite_stops_before_the_step_and_keeps_the_evidence(
    recipe: Make, tmp_path: Path, with_controller: Any
) -> None:
    with_controller(Poison(at=4))
    with pytest.raises(TrainingError) as caught:
        train(recipe(), tmp_path, quiet=True)
    message = str(caught.value)
    assert "step 5 is not finite (loss nan" in message
    assert "last good checkpoint: step-00000004" in message
    assert "lower train.lr" in message
    assert "\n" not in message
    verify(tmp_path / "checkpoints" / "step-00000004")
    failed = tmp_path / "failed-step-00000005"
    assert load_file(failed / "model.safetensors")["model.norm.weight"][0].isnan()
    assert load_file(failed / "batch.safetensors")["0/input_ids"].shape == (8, 16)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["alarms"][0]["kind"] == "not_finite"


def test_controllers_see_loads_and_are_restored(recipe: Make, tmp_path: Path, with_controller: Any) -> None:
    class Counter(Controller):
        """Counts steps and tokens, and asks to be told again."""

        def __init__(self) -> None:
            self.seen: list[int] = []

        def after_step(self, info: StepInfo) -> None:
            self.seen.append(int(sum(load.count_N.sum() for load in info.loads.values())))
            info.metrics["counter"] = len(self.seen)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    first, second = Counter(), Counter()
    with_controller(first)
    train(recipe("train.keep_checkpoints=9"), tmp_path, quiet=True)
    assert first.seen == [2 * 8 * 16 * 2] * 6  # layers x rows x tokens x choices
    with_controller(second)
    train(recipe("train.keep_checkpoints=9"), tmp_path, resume="step-00000004", quiet=True)
    assert second.seen == first.seen
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["controllers"] == {"counter": 6}


@pytest.mark.parametrize("victim", ["model.safetensors", "trainer.json"])
def test_a_full_disk_leaves_earlier_checkpoints_and_one_clear_line(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """The second checkpoint does not fit: writing raises what the operating system or safetensors raise."""
    from safetensors import SafetensorError

    from libmoe.train import checkpoint

    real_save, real_json = checkpoint.save_file, checkpoint.write_json

    def save_file(tensors: Any, path: Path) -> None:
        if victim == path.name and "step-00000004" in str(path):
            path.write_bytes(b"half of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real_save(tensors, path)

    def write_json(path: Path, value: Any) -> None:
        if victim == path.name and "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_json(path, value)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    monkeypatch.setattr(checkpoint, "write_json", write_json)
    with pytest.raises(TrainingError, match=r"disk full while writing .*step-00000004 .*earlier checkpoints") as caught:
        train(recipe(), tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    verify(tmp_path / "checkpoints" / "step-00000002")
    monkeypatch.undo()
    assert train(recipe(), tmp_path, quiet=True).steps == 6


def test_a_full_disk_under_the_log_is_one_clear_line(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the system's own full device, or on a stand-in where there is none."""

    def no_space(self: JsonLines, record: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if FULL.exists():
        (tmp_path / "metrics.jsonl").symlink_to(FULL)
    else:
        monkeypatch.setattr(JsonLines, "write", no_space)
    with pytest.raises(TrainingError, match=r"disk full while writing .*metrics\.jsonl"):
        train(recipe(), tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.micro_batch_size=3"], r"batch_size=8 is not divisible by micro_batch_size=3 .*micro_batch_size=[24]$"),
        (["train.warmup_steps=6"], r"train\.warmup_steps=6 leaves nothing of train\.steps=6; use at most 5"),
        (["method.options.top_k=9"], r"top_k=9 must be between 1 and num_experts=4"),
        (["method.name=smo"], r"unknown method 'smo'; did you mean 'smoe'"),
        (["method.options.num_expert=3"], r"unknown key 'smoe\.num_expert'; did you mean 'num_experts'"),
        (["data.seq_len=4096"], r"seq_len=4096 is longer than backbone\.max_position_embeddings=128; use at most 128"),
        (["train.schedule=cosin"], r"train\.schedule: 'cosin' is not allowed; did you mean 'cosine'"),
        (["train.learning_rate=1"], r"unknown key 'train\.learning_rate'"),
        (["train.lr=0"], r"train\.lr must be greater than 0, got 0"),
        (["train.betas=[0.9]"], r"train\.betas must be two numbers in \[0, 1\)"),
        (["train.dtype=fp16"], r"train\.dtype: 'fp16' is not allowed; did you mean 'fp32'|'bf16'"),
    ],
)
def test_an_impossible_recipe_is_one_line_with_the_fix(recipe: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(*overrides)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.vocab_size=100 is smaller than the tokenizer's \d+"):
        train(recipe("backbone.vocab_size=100"), tmp_path, quiet=True)


def test_a_method_that_sees_the_future_is_noted(recipe: Make, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from libmoe.methods import METHODS

    monkeypatch.setitem(METHODS.info("smoe").facts, "causal", False)
    result = train(recipe("train.steps=3"), tmp_path)
    assert "method 'smoe' is not causal" in result.notes[0]
    assert "warning: method 'smoe' is not causal" in capsys.readouterr().err
    assert "not causal" in json.loads((tmp_path / "result.json").read_text())["notes"][0]


def test_options_that_let_a_router_see_the_future_are_noted(recipe: Make, tmp_path: Path) -> None:
    ds_moe = ("train.steps=3", "method.name=ds-moe", "method.options.balance=0")
    changes = ["method.options.policy=threshold-top-k", "method.options.threshold=1.0"]
    result = train(recipe(*ds_moe, *changes), tmp_path / "a", quiet=True)
    assert not result.causal and "method 'ds-moe' is not causal" in result.notes[0]
    plain = train(recipe(*ds_moe), tmp_path / "b", quiet=True)
    assert plain.causal and not plain.notes


def test_a_missing_tracker_is_named_before_training(recipe: Make, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"'wandb', which is not installed .* pip install 'libmoe\[wandb\]'"):
        train(recipe('train.trackers=["wandb"]'), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        train(recipe('train.trackers=["tensorbord"]'), tmp_path, quiet=True, overwrite=True)


def test_trackers_get_every_logged_step(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[int, dict[str, float]] = {}
    fake = ModuleType("wandb")

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged[step] = values

        def finish(self) -> None:
            logged[-1] = {}

    fake.init = lambda **options: Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(recipe('train.trackers=["wandb"]'), tmp_path, quiet=True)
    assert list(logged) == [1, 2, 3, 4, 5, 6, -1]
    assert {"loss", "lr", "balance/1/entropy", "losses/balance", "timing/tokens_per_second"} <= logged[6].keys()


def test_tensorboard_gets_events(recipe: Make, tmp_path: Path) -> None:
    train(recipe('train.trackers=["tensorboard"]'), tmp_path, quiet=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_evaluation_is_logged_and_the_best_checkpoint_kept(recipe: Make, tmp_path: Path) -> None:
    modes, values = [], {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5, 10: 2.2}

    def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
        modes.append((model.training, torch.is_grad_enabled()))
        torch.rand(7)  # uses up random numbers: training must not notice
        return {"bits_per_byte": values[step]}

    noisy = ("train.steps=10", "method.options.noise=gaussian", "train.log_every=3")
    every = recipe(*noisy, "train.eval_every=2", "train.keep_checkpoints=1")
    train(every, tmp_path / "a", evaluate=evaluate, quiet=True)
    assert modes == [(False, False)] * 5
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {m["step"]: m["eval"]["bits_per_byte"] for m in lines if "eval" in m} == values
    assert list_steps(tmp_path / "a" / "checkpoints") == [4, 10]
    train(every, tmp_path / "b", quiet=True)
    others = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert {m["step"]: m["loss"] for m in others}.items() <= {m["step"]: m["loss"] for m in lines}.items()
