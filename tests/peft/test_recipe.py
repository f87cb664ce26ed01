"""A recipe's `peft` section trains experts and gate beside a frozen vision-language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from libmoe.core.config import build
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.eval import evaluate_run, heldout_evaluator
from libmoe.models import load
from libmoe.peft.adapting import adapted
from libmoe.train import load_recipe, train
from libmoe.train.build import load_data
from libmoe.train.recipe import Recipe
from libmoe.train.step import side_inputs

SMALL: dict[str, Any] = {
    "backbone": {
        "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 256,
        "vision": {"hidden_size": 32, "num_hidden_layers": 1, "image_size": 56},
    },
    "method": {"name": "dense"},
    "data": {"seq_len": 192, "conversations": {"rows": 64}},
    "train": {"steps": 1, "batch_size": 4, "lr": 1e-2, "warmup_steps": 0, "log_every": 1},
    "eval": {"windows_per_domain": 2, "validation_windows": 1, "sample_documents": 0},
}  # fmt: skip


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stage(checkpoint: Path, **more: Any) -> Recipe:
    """The second stage: adapters on a trained model."""
    values = {**SMALL, "backbone": {"checkpoint": str(checkpoint)}, "peft": {"rank": 4, "scale_init": True}}
    values["train"] = {**SMALL["train"], "steps": 2, "save_every": 1}
    return build(Recipe, values | more)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained a dense vision-language model for a step."""
    folder = tmp_path_factory.mktemp("dense")
    train(build(Recipe, SMALL), folder, quiet=True)
    return folder


def test_a_stage_trains_experts_and_gate_alone_and_is_measured(dense: Path, tmp_path: Path) -> None:
    recipe = stage(dense / "model")
    train(recipe, tmp_path / "run", quiet=True, evaluate=heldout_evaluator(recipe))
    before, after = (load_file(r / "model" / "model.safetensors") for r in (dense, tmp_path / "run"))
    names = {name: name.replace(".base.", ".") for name in after if "lora" not in name and "instance" not in name}
    assert sorted(names.values()) == sorted(before)
    assert all(torch.equal(after[new], before[old]) for new, old in names.items())
    moved = [name for name, value in after.items() if name.endswith("lora_B") and value.any()]
    assert len(moved) == len([name for name in after if name.endswith("lora_B")]) == 4
    logged = metrics(tmp_path / "run")
    assert len(logged[-1]["balance"]["0"]["load"]) == 4  # of the gate's experts
    assert sum(logged[-1]["balance"]["0"]["load"]) == pytest.approx(1, abs=1e-5)
    assert logged[-1]["eval"]["bits_per_byte"] > 0

    model = load(tmp_path / "run" / "model")
    assert len(adapted(model)) == 4 and model.libmoe.edits[0].kind == "instance-lora"
    results = evaluate_run(tmp_path / "run")
    assert results["routing"]["layers"][0]["num_experts"] == 4, results.keys()


def test_a_stopped_stage_goes_on_exactly(dense: Path, tmp_path: Path) -> None:
    recipe = stage(dense / "model")
    train(recipe, tmp_path / "run", quiet=True)
    whole = load_file(tmp_path / "run" / "model" / "model.safetensors")
    (tmp_path / "run" / "result.json").unlink()
    train(recipe, tmp_path / "run", quiet=True, resume="step-00000001")
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert len(metrics(tmp_path / "run")) == 2


def test_the_answers_of_a_batch_do_not_reach_the_gate(tmp_path: Path) -> None:
    recipe = build(Recipe, SMALL)
    batch = load_data(recipe, progress=False).loader.batch(0)
    asked_BL = side_inputs(batch)["instruction"]
    assert not (asked_BL & (batch["labels"] != -100)).any()
    first_B = (batch["labels"] != -100).long().argmax(1)
    assert torch.equal(asked_BL.sum(1), first_B)  # all tokens before the first answer, the image's places too


def test_text_without_instructions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set data\.conversations"):
        load_recipe("tiny", ["peft.rank=4"])


def test_the_packaged_recipe_is_valid() -> None:
    recipe = load_recipe("vlm-octavius")
    assert recipe.peft is not None and (recipe.peft.num_experts, recipe.peft.top_k) == (4, 2)
    assert recipe.train.trainable is None
    with pytest.raises(ConfigError, match=r"unknown key 'peft\.ranks'; did you mean 'rank'"):
        load_recipe("vlm-octavius", ["peft.ranks=4"])


def test_targets_of_a_side_input_are_those_that_predict_the_next_token() -> None:
    labels = torch.tensor([[-100, -100, 5, -100, 7], [-100, 3, 4, 5, -100], [-100, -100, -100, -100, -100]])
    with options():
        asked = side_inputs({"input_ids": labels, "labels": labels})["instruction"]
    assert asked.tolist() == [
        [True, True, False, False, False],
        [True, False, False, False, False],
        [True, True, True, True, True],
    ]
