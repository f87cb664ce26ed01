"""The stages of EViP and of Uni-MoE, each from the model of the one before, as their recipes say (made small here)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from libmoe.data.vision.tokens import PATCH, TEXT
from libmoe.models import assemble, load, save
from libmoe.train import load_recipe, train
from libmoe.train.build import build_model, load_data, tokens_of
from libmoe.train.recipe import Recipe

SMALL = ["data.conversations.rows=32", "train.steps=2", "train.batch_size=4", "train.warmup_steps=0", "train.lr=1e-2"]
SCRATCH = [
    *("hidden_size=32", "num_hidden_layers=2", "intermediate_size=64", "max_position_embeddings=256"),
    'vision={"hidden_size": 32, "num_hidden_layers": 1, "image_size": 56, "extra": {"vision_use_head": false}}',
]


def recipe_of(name: str, start: Path | None, *more: str) -> Recipe:
    """Two steps of a packaged recipe, on a small model of its own or the one in ``start``."""
    backbone = [f"checkpoint={start}"] if start is not None else ["checkpoint=null", *SCRATCH]
    return load_recipe(name, [*SMALL, *(f"backbone.{value}" for value in backbone), *more])


def run(name: str, out: Path, start: Path | None, *more: str) -> dict[str, Tensor]:
    """The weights afterwards."""
    train(recipe_of(name, start, *more), out, quiet=True)
    return load_file(out / "model" / "model.safetensors")


def untrained(name: str) -> Any:
    """The model that the first step of :func:`run` starts from."""
    recipe = recipe_of(name, None)
    return build_model(recipe, *tokens_of(recipe))


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


PARTS = {
    "encoder": "vision_tower", "projector": "projector", "router": ".router.", "adapter": ".lora.",
    "expert of text": "experts.parts.0", "expert of images": "experts.parts.1", "frozen expert": ".base.",
    "attention": "self_attn", "dense FFN": ".mlp.", "embedding": "embed_tokens", "norm": "norm",
}  # fmt: skip


def kinds(names: set[str]) -> set[str]:
    """What the parameters of these names belong to."""
    return {next(kind for kind, part in PARTS.items() if part in name) for name in names}


def test_each_stage_of_evip_goes_on_with_the_model_before_and_trains_its_own_parts(tmp_path: Path) -> None:
    start = untrained("vlm-evip-1").state_dict()
    first = run("vlm-evip-1", tmp_path / "1", None)
    second = run("vlm-evip-2", tmp_path / "2", tmp_path / "1" / "model")
    third = run("vlm-evip-3", tmp_path / "3", tmp_path / "2" / "model")
    own = {"encoder", "projector", "expert of images"}
    assert kinds(moved(start, first)) == own
    assert kinds(moved(first, second)) == own | {"attention"}
    assert kinds(moved(second, third)) == own | {"attention", "expert of text", "embedding", "norm"}
    record = load(tmp_path / "3" / "model").libmoe
    assert record.method_name == "modality-static" and len(record.sites) == 2


@pytest.mark.parametrize("name", ["vlm-evip-1", "vlm-evip-2", "vlm-modality-static"])
def test_only_text_is_learned(name: str) -> None:
    batch: dict[str, Any] = load_data(recipe_of(name, None), progress=False).loader.shard(0, 0, 1, 0, 1)
    learned = batch["labels"] != -100
    assert learned.any() and (batch["modality_ids"] == PATCH).any()
    assert set(batch["modality_ids"][learned].tolist()) == {TEXT}


def test_stages_of_uni_moe_assemble_what_was_tuned_apart(tmp_path: Path) -> None:
    base = untrained("vlm-uni-moe-2")
    save(base, tmp_path / "base")
    tuned = run("vlm-uni-moe-2", tmp_path / "2", tmp_path / "base", 'data.conversations.tasks=["count"]')
    changed = moved(load_file(tmp_path / "base" / "model.safetensors"), tuned)
    assert kinds(changed) == {"projector", "dense FFN"} and not any("vision" in name for name in changed)
    assembled = assemble(
        tmp_path / "base", [tmp_path / "base", tmp_path / "2" / "model", base, base], where="language", seed=0
    )
    save(assembled, tmp_path / "assembled")
    before = load_file(tmp_path / "assembled" / "model.safetensors")
    after = run("vlm-uni-moe-3", tmp_path / "3", tmp_path / "assembled")
    assert kinds(moved(before, after)) == {"projector", "adapter", "router"}
