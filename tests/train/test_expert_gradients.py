"""What a controller does to gradients is done before they are clipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.train import train
from libmoe.train.recipe import Recipe


def test_training_scales_the_gradients_of_experts_before_it_clips_them(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The logged norm is that of the scaled gradients, of which those of experts are all but all for many groups."""

    def norm(groups: int) -> float:
        few = ["method.options.num_experts=4", f"method.options.expert_groups={groups}", "train.steps=1"]
        made = recipe("method.name=fairseq-moe-lm", *few, "train.warmup_steps=0", "train.clip=1.0")
        train(made, tmp_path / str(groups), quiet=True)
        line = json.loads((tmp_path / str(groups) / "metrics.jsonl").read_text("utf-8").splitlines()[0])
        assert line["controllers"] == {"gradient_scale/factor": pytest.approx(math.sqrt(groups), rel=1e-3)}
        return float(line["grad_norm"])

    one, many, four_times_as_many = map(norm, (1, 10**8, 4 * 10**8))
    assert four_times_as_many == pytest.approx(2 * many, rel=1e-2) and many > 10 * one
