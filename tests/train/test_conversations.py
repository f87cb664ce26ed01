"""Vision-language models train on conversations, stage by stage, and each stage changes its own parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision.llava import LlavaFile
from libmoe.data.vision.scenes.conversations import SceneConversations
from libmoe.data.vision.scenes.export import export
from libmoe.eval import evaluate_run, heldout_evaluator
from libmoe.models import load
from libmoe.train import load_recipe, train
from libmoe.train.build import load_data
from libmoe.train.recipe import Recipe

STAGE = {
    "backbone": {
        "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 256,
        "vision": {"hidden_size": 32, "num_hidden_layers": 2, "image_size": 56},
    },
    "method": {"name": "dense"},
    "data": {"seq_len": 192, "conversations": {"rows": 64}},
    "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "warmup_steps": 1, "save_every": 2, "log_every": 1},
    "eval": {"windows_per_domain": 4, "validation_windows": 1, "sample_documents": 1},
}  # fmt: skip
UPCYCLED = [
    "backbone.vision=null", "method.name=smoe", 'method.options={"num_experts": 4, "top_k": 2}', "method.init=copy",
    "method.where=vision+connector",
]  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Recipe]:
    file = tmp_path / "stage.yaml"
    file.write_text(json.dumps(STAGE))
    return lambda *overrides: load_recipe(file, overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        ('["connector"]', ["model.multi_modal_projector"]),
        ('["vision", "connector"]', ["model.vision_tower", "model.multi_modal_projector"]),
        ('["*.mlp.*"]', ["model.vision_tower.encoder", "model.language_model.layers"]),
    ],
)
def test_a_stage_changes_only_what_it_trains(
    stage: Callable[..., Recipe], tmp_path: Path, parts: str, prefixes: list[str]
) -> None:
    still = ["train.steps=1", "train.warmup_steps=0", "train.lr=1e-30"]
    train(stage(*still), tmp_path / "before", quiet=True)
    train(stage(f"train.trainable={parts}"), tmp_path / "after", quiet=True)
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    changed = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-20}
    assert changed and all(any(name.startswith(prefix) for prefix in prefixes) for name in changed)
    assert {prefix for prefix in prefixes for name in changed if name.startswith(prefix)} == set(prefixes)


def test_upcycling_starts_from_the_loss_of_the_stage_before_and_a_stopped_run_goes_on_exactly(
    stage: Callable[..., Recipe], tmp_path: Path
) -> None:
    train(stage(), tmp_path / "dense", quiet=True)
    start = f"backbone.checkpoint={tmp_path / 'dense' / 'model'}"
    same = stage(start, "backbone.vision=null")
    more = stage(start, *UPCYCLED)
    train(same, tmp_path / "same", quiet=True)
    train(more, tmp_path / "more", quiet=True)
    assert losses(tmp_path / "more")[0] == pytest.approx(losses(tmp_path / "same")[0], abs=1e-5)
    assert (tmp_path / "more" / "model" / "processor_config.json").is_file()
    assert load(tmp_path / "more" / "model").libmoe.sites[-1].path == "model.multi_modal_projector"

    train(more, tmp_path / "stopped", quiet=True)
    for name in ("result.json", "model"):
        (tmp_path / "stopped" / name).rename(tmp_path / f"old-{name}")
    train(more, tmp_path / "stopped", quiet=True, resume="step-00000002")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "more" / "metrics.jsonl").read_bytes()
    after, undisturbed = weights(tmp_path / "stopped"), weights(tmp_path / "more")
    assert all(torch.equal(value, undisturbed[name]) for name, value in after.items())


def test_micro_batches_do_not_change_the_run(stage: Callable[..., Recipe], tmp_path: Path) -> None:
    """Losses of patches and of padded text are counted over the whole step, however it is cut."""
    options = ["method.name=smoe", 'method.options={"num_experts": 4, "top_k": 2, "balance": 0.1, "z_loss": 0.01}']
    train(stage(*options), tmp_path / "whole", quiet=True)
    train(stage(*options, "train.micro_batch_size=2"), tmp_path / "cut", quiet=True)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


@pytest.mark.distributed
def test_two_processes_train_like_one(stage: Callable[..., Recipe], tmp_path: Path, run_together: Any) -> None:
    options = ["method.name=smoe", 'method.options={"num_experts": 4, "top_k": 2, "balance": 0.1, "z_loss": 0.01}']
    options += ["train.steps=2", "train.save_every=null"]
    train(stage(*options), tmp_path / "one", quiet=True)
    run_together(stage(*options, "train.parallel=ddp", "train.micro_batch_size=2"), tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_run_is_validated_on_other_scenes_and_asked_test_questions(
    stage: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = stage("method.name=smoe", 'method.options={"num_experts": 4, "top_k": 2}', "train.eval_every=2")
    train(recipe, tmp_path / "run", quiet=True, evaluate=heldout_evaluator(recipe))
    found = evaluate_run(tmp_path / "run")
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert set(found["tasks"]) == set(found["domains"]) and found["tasks"]["count"]["n"] >= 4
    assert [layer["layer"] for layer in found["routing"]["layers"]] == [0, 1, 2, 3, 4]
    assert set(found["sample"][0]["tokens"][0]["experts"]) == {"3", "4"}, "patches have no text"
    assert set(json.loads((tmp_path / "run" / "eval.json").read_text())["windows"]) == set(found["domains"])


def test_five_per_cent_of_broken_rows_are_counted_and_named_and_the_rest_trains(
    stage: Callable[..., Recipe], tmp_path: Path
) -> None:
    export(SceneConversations(number=200), tmp_path / "set")
    file = next((tmp_path / "set").glob("*.json"))
    rows = json.loads(file.read_text())
    spoils = [{"image": "gone.png"}, {"conversations": []}, {"image": rows[0]["image"] + "x"}]
    for number, spoil in enumerate(spoils * 3):
        rows[7 + 20 * number] |= spoil
    (tmp_path / "set" / rows[3]["image"]).write_bytes(b"no picture")
    file.write_text(json.dumps(rows))
    recipe = stage(f"data.conversations.source={file}")
    source = LlavaFile(file, progress=False)
    named = [name for names in source.problems.values() for name in names]
    assert len(named) == 10 and len(source) == 190 and any(name.endswith(":4") for name in named)
    result = train(recipe, tmp_path / "run", quiet=True)
    assert result.steps == 4 and result.tokens > 0
    assert evaluate_run(tmp_path / "run")["bits_per_byte"] > 0


def test_processes_that_train_together_refuse_rows_without_an_image_among_others(
    stage: Callable[..., Recipe], tmp_path: Path
) -> None:
    export(SceneConversations(number=60), tmp_path / "set")
    file = next((tmp_path / "set").glob("*.json"))
    rows, recipe = json.loads(file.read_text()), stage(f"data.conversations.source={file}")
    load_data(recipe, progress=False, processes=2)
    del rows[5]["image"]
    rows[5]["conversations"][0]["value"] = rows[5]["conversations"][0]["value"].replace("<image>", "")
    file.write_text(json.dumps(rows))
    load_data(recipe, progress=False, processes=1)
    with pytest.raises(ConfigError, match="some rows have no image, and 2 processes"):
        load_data(recipe, progress=False, processes=2)


def test_what_cannot_be_is_one_line(stage: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'connector'"):
        stage('train.trainable=["conector"]')
    with pytest.raises(ConfigError, match="trains nothing"):
        stage("train.trainable=[]")
    with pytest.raises(ConfigError, match=r"conversations with images need backbone\.vision"):
        train(stage("backbone.vision=null"), tmp_path / "a", quiet=True)
    with pytest.raises(DataError, match=r"is no \.json or \.jsonl file of conversations"):
        train(stage("data.conversations.source=nowhere.json"), tmp_path / "b", quiet=True)
    with pytest.raises(ConfigError, match="has no parameters of 'experts'"):
        train(stage('train.trainable=["experts"]'), tmp_path / "c", quiet=True)
