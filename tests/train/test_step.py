"""One optimiser step means the same however the batch is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from libmoe.core.plugins import load_plugin
from libmoe.methods import METHODS
from libmoe.train import train
from libmoe.train.recipe import Recipe

Make = Callable[..., Recipe]
GLOBAL = ("method.options.balance=0.1", "method.options.balance_scope=global_batch")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [m["loss"] for m in metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in (run / "model").glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same_run(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    assert losses(a) == pytest.approx(losses(b), abs=tolerance)
    for one, other in zip(metrics(a), metrics(b)):
        assert one["losses"] == pytest.approx(other["losses"], abs=tolerance)
        assert [x["load"] for x in one["balance"].values()] == [x["load"] for x in other["balance"].values()]
    theirs = weights(b)
    for name, tensor in weights(a).items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", [(), GLOBAL], ids=["sequence", "global_batch"])
def test_micro_batches_do_not_change_the_run(recipe: Make, tmp_path: Path, options: tuple[str, ...]) -> None:
    train(recipe(*options), tmp_path / "whole", quiet=True)
    train(recipe(*options, "train.micro_batch_size=2"), tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_without_the_counting_pass_a_global_balance_loss_does_depend_on_them(recipe: Make, tmp_path: Path) -> None:
    strong = ("method.options.balance=1.0", "method.options.balance_scope=global_batch")
    train(recipe(*strong), tmp_path / "whole", quiet=True)
    train(recipe(*strong, "train.micro_batch_size=2", "train.exact_counts=false"), tmp_path / "cut", quiet=True)
    assert losses(tmp_path / "whole") != pytest.approx(losses(tmp_path / "cut"), abs=1e-6)


def test_the_counting_pass_draws_the_noise_that_training_draws(recipe: Make, tmp_path: Path) -> None:
    """Loads counted beforehand equal the loads of the passes with gradients, noise included."""
    from libmoe.core.statistics import StepStatistics

    seen = []
    end = StepStatistics.end_counting

    def spy(self: StepStatistics) -> None:
        end(self)
        seen.append({i: load.count_N.clone() for i, load in self.exact["global_batch"].items()})

    noisy = recipe(*GLOBAL, "method.options.noise=gaussian", "train.micro_batch_size=2", "train.steps=3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepStatistics, "end_counting", spy)
        train(noisy, tmp_path, quiet=True)
    for counted, logged in zip(seen, metrics(tmp_path)):
        for layer, count_N in counted.items():
            assert logged["balance"][str(layer)]["load"] == pytest.approx((count_N / count_N.sum()).tolist(), abs=1e-6)
    assert len(seen) == 3


def test_activation_checkpointing_changes_no_bit(recipe: Make, tmp_path: Path) -> None:
    noisy = ("method.options.noise=gaussian", *GLOBAL, "train.micro_batch_size=4")
    plain, recomputed = tmp_path / "plain", tmp_path / "recomputed"
    train(recipe(*noisy), plain, quiet=True)
    train(recipe(*noisy, "train.activation_checkpointing=true"), recomputed, quiet=True)
    assert (plain / "metrics.jsonl").read_bytes() == (recomputed / "metrics.jsonl").read_bytes()
    theirs = weights(recomputed)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(plain).items())


@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_train_like_one(recipe: Make, tmp_path: Path, run_together: Any, mode: str) -> None:
    train(recipe(*GLOBAL), tmp_path / "one", quiet=True)
    run_together(recipe(*GLOBAL, f"train.parallel={mode}", "train.micro_batch_size=2"), tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")


THAWING = """
from dataclasses import dataclass
from libmoe.controllers import Controller
from libmoe.methods import register_method
from libmoe.methods.smoe import SMoE

class Thaw(Controller):
    def start(self, info):
        for name, parameter in info.model.named_parameters():
            parameter.requires_grad_(".experts." not in name)

    def before_step(self, info):
        if info.step >= 3:
            info.model.requires_grad_(True)

@register_method("thawing", summary="experts are frozen for three steps")
@dataclass(kw_only=True)
class Thawing(SMoE):
    def build_controllers(self):
        return [Thaw()]
"""


@pytest.mark.distributed
def test_parameters_that_a_controller_thaws_are_reduced_over_processes(
    recipe: Make, tmp_path: Path, run_together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("_entries", "_aliases"):
        monkeypatch.setattr(METHODS, table, dict(getattr(METHODS, table)))
    plugin = tmp_path / "thawing.py"
    plugin.write_text(THAWING)
    load_plugin(plugin)
    thawing = recipe("method.name=thawing", "train.parallel=ddp")
    train(thawing, tmp_path / "one", quiet=True)
    run_together(thawing, tmp_path / "two", plugin=str(plugin))
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.distributed
def test_a_run_resumes_with_another_number_of_processes(recipe: Make, tmp_path: Path, run_together: Any) -> None:
    """Checkpoints hold whole tensors: what two sharded processes began, one can finish."""
    part = recipe("train.parallel=fsdp", "train.keep_checkpoints=9")
    run_together(part, tmp_path / "run")
    train(part, tmp_path / "run", resume="step-00000002", quiet=True)
    train(part, tmp_path / "one", quiet=True)
    assert_same_run(tmp_path / "one", tmp_path / "run")


def test_bf16_trains_with_parameters_in_fp32(recipe: Make, tmp_path: Path) -> None:
    train(recipe("train.dtype=bf16", "train.steps=12"), tmp_path / "bf16", quiet=True)
    train(recipe("train.steps=12"), tmp_path / "fp32", quiet=True)
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), abs=0.05)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")
    assert {t.dtype for t in weights(tmp_path / "bf16").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_compiled_parts_compute_the_same(recipe: Make, tmp_path: Path, recompute: str) -> None:
    train(recipe(), tmp_path / "eager", quiet=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = ("train.compile=true", f"train.activation_checkpointing={recompute}")
    train(recipe(*options), tmp_path / "compiled", quiet=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same_run(tmp_path / "eager", tmp_path / "compiled", tolerance=1e-4)
