"""The counts behind a balance loss over the global batch, through the training loop (arXiv 2501.11873)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.statistics import StepStatistics
from libmoe.losses import balance
from libmoe.train import train
from libmoe.train.recipe import Recipe

Make = Callable[..., Recipe]
BUFFERED = (
    "method.options.balance=0.1", "method.options.balance_scope=global_batch", "train.micro_batch_size=2",
    "train.exact_counts=false", "train.steps=3", "train.eval_every=1",
)  # fmt: skip


def test_the_buffer_grows_over_a_steps_micro_batches_is_empty_after_it_and_evaluation_leaves_it_alone(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: list[Tensor] = []  # counts of each forward pass of the first layer
    used: list[Tensor] = []  # shares by which the loss of that pass balanced
    add, frequencies = StepStatistics.add, balance.frequencies

    def counted(self: StepStatistics, layer: int, count_N: Tensor, tokens: Tensor) -> None:
        if layer == 0:
            own.append(count_N.clone())
        add(self, layer, count_N, tokens)

    def watched(plan: Any, scope: Any, ctx: Any, dtype: Any) -> Any:
        found = frequencies(plan, scope, ctx, dtype)
        if ctx.index == 0:
            used.append(found[0][0])
        return found

    def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
        model(input_ids=torch.full((3, 5), step))
        return {"loss": 1.0}

    monkeypatch.setattr(StepStatistics, "add", counted)
    monkeypatch.setattr(balance, "frequencies", watched)
    train(recipe(*BUFFERED), tmp_path, evaluate=evaluate, quiet=True)
    assert len(own) == len(used) == 3 * 4  # 8 rows a step, 2 at a time; evaluation counts nothing
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["balance"]["0"]["load"] for line in lines]
    for step in range(3):
        for place in range(4):
            # From nothing at the first micro-batch to the whole step at the last.
            buffer_N = sum(own[4 * step : 4 * step + place + 1])
            torch.testing.assert_close(used[4 * step + place] / 2, buffer_N / buffer_N.sum())
        assert (used[4 * step + 3] / 2).tolist() == pytest.approx(logged[step], abs=1e-5)
