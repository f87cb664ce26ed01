"""Scores do not depend on the batch size, except where the result says that they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comparable import KINDS, few_experts
from libmoe.eval.flags import CROSS_BATCH, flags_of
from libmoe.eval.harness import Settings, evaluate_tasks
from libmoe.eval.harness.driver import quiet
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.loading import load_tasks
from libmoe.eval.harness.samples import SampleFile
from libmoe.layers import moe_layers
from libmoe.methods import METHODS
from libmoe.models import moeify

TASKS = ["moe_cloze", "moe_definition"]
LIMIT = 6


def scores(
    model: nn.Module, tokenizer: Any, folder: Path, batch_size: int
) -> tuple[dict[str, float], list[float]]:
    """Metrics by task, and every likelihood behind them."""
    with quiet():
        tasks, _, _ = load_tasks(TASKS)
        scorer = Scorer(model, tokenizer, batch_size)
    settings = Settings(limit=LIMIT, batch_size=batch_size, bootstrap=0)
    found = evaluate_tasks(scorer, tasks, folder / str(batch_size), settings)
    assert not found.failed and list(found.tasks) == TASKS
    metrics = {f"{name} {m.name}": m.value for name, score in found.tasks.items() for m in score.metrics}
    rows = (row for name in TASKS for row in SampleFile(folder / str(batch_size) / "samples" / name).read())
    return metrics, [answer[0] for row in rows for answers in row["responses"] for answer in answers]


def build(dense: nn.Module, method: str, options: dict[str, Any]) -> nn.Module:
    """A model in which it matters much which expert a token goes to."""
    model = moeify(dense, method, options=few_experts(method, 4) | options, seed=0).eval()
    with torch.no_grad():
        for _, layer in moe_layers(model):
            for parameter in layer.parameters():
                parameter.mul_(8)
    return model


def independent() -> list[str]:
    """Of each kind of method; that a method does not depend on the batch is part of every method's contract."""
    return [name for name in KINDS if METHODS.info(name).facts.get("causal", True)]


@pytest.mark.parametrize("method", independent())
def test_batch_sizes_of_1_and_32_give_equal_scores(
    method: str, dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    model = build(dense, method, {})
    assert flags_of(model) == []
    one, one_by_one = scores(model, tokenizer, tmp_path, 1)
    many, together = scores(model, tokenizer, tmp_path, 32)
    assert one == many and len(one) >= 4
    assert together == pytest.approx(one_by_one, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("expert-choice", {"group": "batch"}),
        ("expert-choice", {}),  # groups are sequences, but these are padded
        ("switch", {"eval_capacity_factor": 1.0}),
    ],
)
def test_a_method_whose_scores_change_with_the_batch_is_flagged(
    method: str, options: dict[str, Any], dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    model = build(dense, method, options)
    assert CROSS_BATCH in {flag["kind"] for flag in flags_of(model)}
    _, one_by_one = scores(model, tokenizer, tmp_path, 1)
    _, together = scores(model, tokenizer, tmp_path, 32)
    assert together != pytest.approx(one_by_one, rel=1e-2, abs=0.1)  # or the flag would be for nothing
