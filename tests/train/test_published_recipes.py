"""The recipes of published size run, all three stages, where the weights and the data are: here, both small ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from libmoe.data import load_tokenizer
from libmoe.data.vision.scenes.conversations import SceneConversations
from libmoe.data.vision.scenes.export import export
from libmoe.models import load
from libmoe.train import load_recipe, train
from libmoe.train.recipe import packaged

LANGUAGE = {
    "moe-llava": "stablelm",
    "libmoe-vlm-clip-phi3": "phi3",
    "libmoe-vlm-siglip-phi3": "phi3",
    "libmoe-vlm-siglip-phi35": "phi3",
}
CONNECTOR, ENCODER, MODEL, HEAD = "model.multi_modal_projector", "model.vision_tower", "model.language_model", "lm_head"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of weights and data such as the recipes name, but small."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Phi3Config,
        Phi3ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
        StableLmConfig,
        StableLmForCausalLM,
    )

    folder, tokenizer = tmp_path_factory.mktemp("hub"), load_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    words = {"vocab_size": len(tokenizer) + 8, "num_key_value_heads": 2, "max_position_embeddings": 512} | end
    seen = {**shape, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "stablelm": StableLmForCausalLM(StableLmConfig(**shape, **words)),
        "phi3": Phi3ForCausalLM(Phi3Config(**shape, **words)),
        "clip": CLIPVisionModel(CLIPVisionConfig(**seen)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**seen)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    export(SceneConversations(number=120), folder / "scenes")
    return folder


@pytest.fixture
def run(hub: Path, tmp_path: Path) -> Callable[[str, int], None]:
    """Train stage ``number`` of a recipe; what is replaced is where things lie, and how much of them is used."""

    def start(name: str, number: int) -> None:
        file = next((hub / "scenes").glob("*.json"))
        small = [f"data.conversations.source={file}", f"data.conversations.images={hub / 'scenes'}"]
        small += ["train.steps=2", "train.warmup_steps=0", "train.batch_size=4", "train.micro_batch_size=2"]
        small += ["train.log_every=1", "train.threads=1", "data.seq_len=256"]
        language = hub / LANGUAGE[name] if number == 1 else tmp_path / str(number - 1) / "model"
        small += [f"backbone.checkpoint={language}", f"data.tokenizer={language}"]
        if number == 1:
            encoder = "siglip" if "siglip" in name else "clip"
            small += [f"backbone.vision.checkpoint={hub / encoder}", "backbone.vision.layers=1"]
        train(load_recipe(f"{name}-{number}", small), tmp_path / str(number), quiet=True)

    return start


Tensors = dict[str, torch.Tensor]


def tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def changed(before: Tensors, after: Tensors) -> set[str]:
    return {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


def parts(names: set[str]) -> set[str]:
    """Parts of the model that tensors belong to."""
    return {".".join(name.split(".")[:2]) if name.startswith("model.") else name.split(".")[0] for name in names}


def test_the_stages_of_moe_llava_train_connector_then_all_but_the_encoder_then_ffns_alone(
    run: Callable[[str, int], None], hub: Path, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        run("moe-llava", number)
    one, two, three = (tensors(tmp_path / stage / "model") for stage in "123")
    language = {
        name.replace("model.", f"{MODEL}.", 1) if name.startswith("model.") else name: value
        for name, value in tensors(hub / "stablelm").items()
    }
    assert language.keys() <= one.keys()
    assert torch.equal(language.pop("lm_head.weight"), one["lm_head.weight"][: len(load_tokenizer()) + 8])
    assert not changed(language, one), "stage 1 trains the connector alone"
    assert parts(changed(one, two)) == {CONNECTOR, MODEL, HEAD}
    # Of the FFNs between the experts; the others are gone.
    assert changed(two, three) == {name for name in two if ".layers.1.mlp." in name or ".layers.3.mlp." in name}
    sites = load(tmp_path / "3" / "model").libmoe.sites
    assert [site.path for site in sites] == [f"{MODEL}.layers.{i}.mlp" for i in (0, 2)]
    dense, bank = two[f"{MODEL}.layers.0.mlp.down_proj.weight"], three[f"{MODEL}.layers.0.mlp.experts.w_out"]
    assert len(bank) == 4 and all(0 < (expert - dense).abs().max() < 1e-3 for expert in bank)


@pytest.mark.parametrize("name", ["libmoe-vlm-clip-phi3", "libmoe-vlm-siglip-phi35"])
def test_the_stages_of_libmoes_models_train_all_and_put_experts_into_encoder_and_connector(
    name: str, run: Callable[[str, int], None], tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        run(name, number)
    one, two = (tensors(tmp_path / stage / "model") for stage in "12")
    assert parts(changed(one, two)) == {ENCODER, CONNECTOR, MODEL, HEAD}
    sites = load(tmp_path / "3" / "model").libmoe.sites
    assert [site.path for site in sites] == [f"{ENCODER}.encoder.layers.0.mlp", CONNECTOR]


def test_all_recipes_of_published_size_are_looked_at_here() -> None:
    published = {name[:-2] for name in packaged("recipes") if name.startswith(("moe-llava-", "libmoe-vlm-"))}
    assert published == set(LANGUAGE)


@pytest.mark.parametrize("name", sorted(LANGUAGE))
def test_a_recipe_of_published_size_is_one_epoch_with_three_per_cent_of_warm_up(name: str) -> None:
    for number in (1, 2, 3):
        recipe = load_recipe(f"{name}-{number}")
        assert recipe.train.warmup_steps == round(0.03 * recipe.train.steps)
        assert recipe.train.min_lr_ratio == 0 and recipe.train.weight_decay == 0 and recipe.train.dtype == "bf16"
        rows = {"llava-558k": 558_128, "llava-665k": 665_298, "allava": 708_140}.get(
            str(recipe.data.conversations and recipe.data.conversations.source), 964_000
        )
        assert recipe.train.steps == -(-rows // recipe.train.batch_size)
