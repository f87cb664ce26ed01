"""``train.trainable: [experts:1]``: one expert of each layer learns, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from libmoe.train import train
from libmoe.train.recipe import Recipe

HEAVY = ["train.weight_decay=0.5", "train.steps=3", "train.warmup_steps=0", "train.save_every=null"]


def weights(run: Path) -> dict[str, Tensor]:
    return {name: value for name, value in load_file(run / "model" / "model.safetensors").items() if "experts" in name}


@pytest.mark.distributed
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_other_experts_keep_their_bits_however_training_is_spread(
    recipe: Callable[..., Recipe], tmp_path: Path, run_together: Any, parallel: str
) -> None:
    some = ['train.trainable=["experts:1", "*norm*"]', *HEAVY]
    train(recipe("train.steps=1", "train.lr=1e-30", "train.warmup_steps=0"), tmp_path / "start", quiet=True)
    train(recipe(*some), tmp_path / "one", quiet=True)
    run_together(recipe(*some, f"train.parallel={parallel}"), tmp_path / "two")
    start, one, two = (weights(tmp_path / run) for run in ("start", "one", "two"))
    for name, before in start.items():
        for expert in range(len(before)):
            if expert == 1:
                assert (one[name][1] - before[1]).abs().max() > 1e-4
                torch.testing.assert_close(two[name][1], one[name][1], rtol=1e-3, atol=1e-5)
            else:
                torch.testing.assert_close(one[name][expert], before[expert], rtol=0, atol=1e-20)
                assert torch.equal(two[name][expert], one[name][expert])
