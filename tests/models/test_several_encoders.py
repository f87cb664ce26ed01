"""Several image encoders in one LLaVA, each with a connector of its own (MoCHA, arXiv 2507.22805)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import libmoe
from libmoe.core.config import build
from libmoe.core.errors import ConfigError
from libmoe.core.statistics import StepStatistics
from libmoe.eval import evaluate_run
from libmoe.layers import moe_layers
from libmoe.models import account, load, load_any, save
from libmoe.models.accounting import flop_counter
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.composing import image_layout, layout_of
from libmoe.models.detect import find_ffns
from libmoe.models.encoders import VisionConfig, build_encoder
from libmoe.models.group_attention import GroupAttention
from libmoe.models.several_encoders import SeveralEncodersForConditionalGeneration
from libmoe.models.trainable import freeze_others
from libmoe.train import load_recipe, train
from libmoe.train.build import build_model, load_data, tokens_of
from libmoe.train.recipe import Recipe

IMAGE, SIZE = 96, 64
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2}
DINO = VisionConfig(None, "dinov2", hidden_size=48, image_size=56, **SMALL)  # a class token and 16 patches
SIGLIP = VisionConfig(None, "siglip_vision_model", hidden_size=32, image_size=28, **SMALL)  # 4 patches
CONVNEXT = VisionConfig(  # 4 places of 48 channels, of which 16 are made
    None, "convnext", patch_size=4, image_size=SIZE, channel_pool=3,
    extra={"hidden_sizes": [8, 12, 24, 48], "depths": [1, 1, 1, 1]},
)  # fmt: skip
CLIP = VisionConfig(None, "clip_vision_model", hidden_size=32, image_size=28, class_token=True, **SMALL)  # 5 tokens
PARTS = {"dinov2": (DINO, 16, 48), "siglip": (SIGLIP, 4, 32), "convnext": (CONVNEXT, 4, 16), "clip": (CLIP, 5, 32)}
ALL = [DINO, CONVNEXT, SIGLIP, CLIP]


def built(encoders: list[VisionConfig] = ALL, mixing: str = "none", **changes: Any) -> Any:
    vision = VisionConfig(encoders=encoders, mixing=mixing, **changes)
    return build_backbone(BackboneConfig(hidden_size=32, num_hidden_layers=2, vocab_size=IMAGE + 1, vision=vision))


def batch(model: Any, rows: int = 2, text: int = 10) -> dict[str, torch.Tensor]:
    """Text with the image near its beginning."""
    places = model.config.image_seq_length
    ids = torch.randint(0, IMAGE, (rows, places + text))
    ids[:, 3 : 3 + places] = IMAGE
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, SIZE, SIZE)}


def seen(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the language model reads of each image."""
    return torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))


def with_experts(model: Any, **options: Any) -> Any:
    return libmoe.moeify(model, "moe-connector", where="connector", options=options, seed=0)


def test_each_encoder_reads_the_image_at_its_size_and_its_tokens_come_in_order() -> None:
    """Against every encoder and connector by hand."""
    model, pixels = built(), torch.randn(2, 3, SIZE, SIZE)
    assert isinstance(model, SeveralEncodersForConditionalGeneration)
    assert model.config.image_seq_length == 16 + 4 + 4 + 5
    expected = []
    for number, config in enumerate(ALL):
        encoder = model.get_submodule(f"model.vision_tower.encoder_{number}")
        connector = model.get_submodule(f"model.multi_modal_projector.connector_{number}")
        size = (config.image_size, config.image_size)
        resized = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        states = encoder(pixel_values=resized, output_hidden_states=True).hidden_states[-1]
        if config is CONVNEXT:
            states = nn.AvgPool1d(3, stride=3)(states.flatten(2).transpose(1, 2))
        elif config is DINO:
            states = states[:, 1:]
        expected.append(connector.linear_2(F.gelu(connector.linear_1(states))))
    torch.testing.assert_close(seen(model, pixels), torch.cat(expected, 1), rtol=1e-5, atol=1e-6)


def test_mixed_tokens_are_those_of_group_attention_over_encoders() -> None:
    plain, mixed, pixels = built(), built(mixing="hga"), torch.randn(2, 3, SIZE, SIZE)
    groups = [0] * 16 + [1] * 4 + [2] * 4 + [3] * 5
    torch.testing.assert_close(seen(mixed, pixels), GroupAttention()(seen(plain, pixels), groups))
    assert sum(p.numel() for p in mixed.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("mixing", ["none", "hga"])
def test_the_text_after_the_image_sees_every_encoder_and_the_text_before_none(mixing: str) -> None:
    model, given = built([DINO, SIGLIP], mixing), batch(built([DINO, SIGLIP]))
    first = model(**given).logits
    for number in range(2):
        changed = built([DINO, SIGLIP], mixing)
        with torch.no_grad():
            for parameter in changed.get_submodule(f"model.vision_tower.encoder_{number}").parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        difference = (changed(**given).logits - first).abs().amax(-1)
        assert difference[:, :3].max() == 0 and difference[:, -10:].min() > 0


def test_encoders_are_drawn_apart_and_those_of_a_checkpoint_stay_what_they_are(tmp_path: Path) -> None:
    encoder = build_encoder(DINO, seed=7)
    encoder.save_pretrained(tmp_path)
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "image_processor_type": "BitImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    saved = VisionConfig(str(tmp_path), image_size=28, layers=1)
    tower = build_encoder(VisionConfig(encoders=[saved, DINO, DINO]))
    kept = tower.encoder_0.state_dict()
    same = [name for name, value in kept.items() if "position" not in name and value.dim() > 1]
    assert same and all(torch.equal(kept[name], encoder.state_dict()[name]) for name in same)
    assert len(tower.encoder_0.encoder.layer) == 1 and tower.config.tokens == 4 + 16 + 16
    one, other = (e.encoder.layer[0].mlp.fc1.weight for e in (tower.encoder_1, tower.encoder_2))
    assert not torch.allclose(one, other)

    grey = torch.full((1, 3, 56, 56), 0.5)  # 0.75 of the brightest
    pixels = tower.readings[0].pixels(grey)
    expected = [(0.75 - mean) / std for mean, std in zip((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True)]
    assert pixels.shape[-2:] == (28, 28)
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(expected))
    assert torch.equal(tower.readings[1].pixels(grey), grey)


@pytest.mark.parametrize("mixing", ["none", "hga"])
def test_saved_models_come_back_equal_and_generate(mixing: str, tmp_path: Path) -> None:
    model = with_experts(built(mixing=mixing))
    given = batch(model)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again(**given).logits, model(**given).logits)
    assert layout_of(again, None) == layout_of(model, None)
    given = {name: value[:1] for name, value in given.items()}
    for one in (model, again):
        new = one.generate(**given, max_new_tokens=4, do_sample=False)
        rest = [one(input_ids=new[:, :end], pixel_values=given["pixel_values"]).logits[0, -1] for end in range(-4, 0)]
        assert new.shape[1] == given["input_ids"].shape[1] + 4
        assert new[0, -4:].tolist() == [int(logits.argmax()) for logits in rest], "the cache changes the answer"


def test_a_plain_transformers_folder_of_several_encoders_is_loaded(tmp_path: Path) -> None:
    model = built([DINO, SIGLIP], "hga")
    model.save_pretrained(tmp_path)
    given = batch(model)
    assert torch.equal(load_any(tmp_path)(**given).logits, model(**given).logits)


def test_every_connector_gets_experts_and_every_encoder_is_a_stack_of_its_own() -> None:
    model = built()
    projector, tower = "model.multi_modal_projector", "model.vision_tower"
    sites = with_experts(built()).libmoe.sites
    assert [site.path for site in sites] == [f"{projector}.connector_{number}" for number in range(4)]
    assert [(site.site.dim, site.site.out, site.site.hidden) for site in sites] == [
        (width, 32, 32) for width in (48, 16, 32, 32)
    ]
    last = libmoe.moeify(built(), "smoe", where="vision:last:1", init="copy", seed=0).libmoe.sites
    assert [site.path.removeprefix(tower).split(".")[1] for site in last] == ["encoder_0", "encoder_2", "encoder_3"]
    assert len(find_ffns(model)) == 6 + 4 + 2


def test_upcycled_connectors_and_encoders_compute_what_they_did() -> None:
    model, given = built(mixing="hga"), batch(built())
    before = model(**given).logits
    libmoe.moeify(model, "moe-connector", where="vision+connector", init="copy", seed=0)
    assert len(list(moe_layers(model))) == 6 + 4
    assert (model(**given).logits - before).abs().max() < 1e-5


def test_parts_are_trained_apart() -> None:
    model = with_experts(built([DINO, SIGLIP]))
    connectors = freeze_others(model, ["connector"])
    assert connectors == freeze_others(model, ["experts", "routers"])
    assert {name.split(".")[2] for name in connectors} == {"connector_0", "connector_1"}
    vision = freeze_others(model, ["vision"])
    assert {name.split(".")[2] for name in vision} == {"encoder_0", "encoder_1"}
    assert len(freeze_others(model, ["model.vision_tower.encoder_1.*"])) < len(vision)


def test_losses_of_uniform_routing_in_four_connectors_add_up() -> None:
    """4 for the balance, 4 (ln 4)^2 for z; patches are balanced for each image."""
    model = with_experts(built(mixing="hga")).train()
    for _, layer in moe_layers(model):
        nn.init.zeros_(layer.router.gate.weight)
    statistics = StepStatistics()
    with libmoe.options(statistics=statistics):
        model(**batch(model, rows=3))
    values = {key: (numerator / tokens).item() for key, (numerator, tokens) in statistics.losses.items()}
    assert [load.tokens.item() for load in statistics.seen.values()] == [3 * 16, 3 * 4, 3 * 4, 3 * 5]
    assert sum(v for (_, name), v in values.items() if name == "first_choice_balance") == pytest.approx(4)
    assert sum(v for (_, name), v in values.items() if name == "z") == pytest.approx(4 * math.log(4) ** 2)


def test_every_part_gets_a_gradient() -> None:
    model = with_experts(built(mixing="hga", encoders=[DINO, CONVNEXT, SIGLIP])).train()
    given = batch(model)
    model(**given, labels=given["input_ids"]).loss.backward()
    for part in ("vision_tower.encoder_0", "vision_tower.encoder_1", "vision_tower.encoder_2", "multi_modal_projector"):
        for name, parameter in model.get_submodule(f"model.{part}").named_parameters():
            # Norms and heads after the last block are not read, nor is a token for masked training.
            if not name.startswith(("layernorm", "head", "post_layernorm")) and "mask_token" not in name:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{part}.{name}"


def test_costs_are_counted() -> None:
    model = built([DINO, CONVNEXT], "hga")
    counted, given = account(model, 10), batch(model, rows=1)
    with flop_counter() as counter, torch.no_grad():
        model(**given, use_cache=False)
    assert counted.tokens == given["input_ids"].numel()
    assert counted.flops_per_token * counted.tokens == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert counted.total_params == sum(p.numel() for p in model.parameters())
    sparse = account(with_experts(built([DINO, CONVNEXT], "hga")), 10)
    connectors = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    gates = 4 * (48 + 16)
    assert sparse.total_params == counted.total_params + 3 * connectors + gates
    assert sparse.active_params == counted.total_params + connectors + gates
    assert sparse.flops_per_token > counted.flops_per_token


@pytest.mark.parametrize("name", PARTS)
def test_an_encoder_by_itself_can_be_the_only_one(name: str) -> None:
    config, tokens, width = PARTS[name]
    layout = image_layout(VisionConfig(encoders=[config], image_size=SIZE), None)
    assert (layout.size, layout.tokens) == (SIZE, tokens)
    model = built([config])
    assert model.model.multi_modal_projector.connector_0.linear_1.in_features == width
    given = batch(model)
    assert model(**given).logits.isfinite().all()


def test_the_published_encoders_make_1693_tokens() -> None:
    """Their sizes with fewer blocks, on the meta device: 21 x 21, 10 x 10 and twice 24 x 24."""
    recipe = load_recipe("mocha-1")
    assert recipe.backbone.vision is not None
    shape = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16, "image_size": 336}
    extra = {"hidden_sizes": [384, 768, 1536, 3072], "depths": [1, 1, 1, 1]}
    kinds = [("siglip_vision_model", 16, {}), ("convnext", 4, extra), ("clip_vision_model", 14, {}), ("dinov2", 14, {})]
    encoders = [
        VisionConfig(None, kind, patch_size=patch, extra=more, channel_pool=listed.channel_pool, **shape)
        for (kind, patch, more), listed in zip(kinds, recipe.backbone.vision.encoders, strict=True)
    ]
    with torch.device("meta"):
        tower = build_encoder(VisionConfig(encoders=encoders), None)
    assert [reading.tokens for reading in tower.readings] == [441, 100, 576, 576]
    assert {reading.width for reading in tower.readings} == {1024}
    assert image_layout(VisionConfig(encoders=encoders), None).tokens == 1693 < recipe.data.seq_len


# --- training ---

STAGE = {
    "backbone": {
        "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 256,
        "vision": {
            "mixing": "hga",
            "encoders": [
                {"architecture": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "image_size": 56},
                {"hidden_size": 32, "num_hidden_layers": 1, "image_size": 28},
            ],
        },
    },
    "method": {"name": "moe-connector", "where": "connector"},
    "data": {"seq_len": 196, "conversations": {"rows": 64}},
    "train": {"steps": 2, "batch_size": 4, "lr": 1e-2, "save_every": None, "log_every": 1, "trainable": ["connector"]},
    "eval": {"windows_per_domain": 2, "validation_windows": 1, "sample_documents": 0},
}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Recipe]:
    file = tmp_path / "stage.yaml"
    file.write_text(json.dumps(STAGE))
    return lambda *overrides: load_recipe(file, overrides)


def test_batches_have_a_place_for_each_encoders_tokens_and_so_has_the_processor(
    stage: Callable[..., Recipe], tmp_path: Path
) -> None:
    import PIL.Image

    data = load_data(stage(), progress=False)
    given = data.loader.batch(0)
    assert ((given["input_ids"] == data.image_token).sum(1) == 16 + 4).all()
    assert given["pixel_values"].shape == (4, 3, 56, 56)
    asked = data.processor(text="<image> what?", images=PIL.Image.new("RGB", (80, 60)), return_tensors="pt")
    assert int((asked["input_ids"] == data.image_token).sum()) == 16 + 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe, two steps long."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "stage.yaml").write_text(json.dumps(STAGE))
    train(load_recipe(folder / "stage.yaml"), folder / "run", quiet=True)
    return folder / "run"


def test_a_recipe_trains_its_connectors_alone(stage: Callable[..., Recipe], trained: Path) -> None:
    before = build_model(stage(), *tokens_of(stage())).state_dict()
    after = load(trained / "model").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if "multi_modal_projector" in name}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(math.isfinite(line["loss"]) for line in lines)


def test_the_next_stage_goes_on_with_the_experts_of_the_one_before(
    stage: Callable[..., Recipe], trained: Path, tmp_path: Path
) -> None:
    start = [f"backbone.checkpoint={trained / 'model'}", "backbone.vision=null"]
    recipe = stage(*start, 'train.trainable=["connector", "language"]', "train.steps=1")
    before = load(trained / "model").state_dict()
    begun = build_model(recipe, *tokens_of(recipe)).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in begun.items())
    train(recipe, tmp_path / "two", quiet=True)
    after = load(tmp_path / "two" / "model").state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in before if "vision_tower" in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method.name=smoe", r"method\.name: the model has MoE layers already, with 'moe-connector'"),
        ('method.options={"top_k": 1}', r"method\.options: the model has MoE layers already"),
        ("method.where=all", r"with 'connector' instead of 'all'"),
    ],
)
def test_the_next_stage_cannot_have_other_experts(
    stage: Callable[..., Recipe], trained: Path, change: str, words: str
) -> None:
    recipe = stage(f"backbone.checkpoint={trained / 'model'}", "backbone.vision=null", change)
    with pytest.raises(ConfigError, match=words):
        build_model(recipe, *tokens_of(recipe))


def test_a_run_is_asked_test_questions(trained: Path) -> None:
    found = evaluate_run(trained)
    assert set(found["tasks"]) == set(found["domains"]) and found["tasks"]["count"]["n"] >= 2
    assert [layer["layer"] for layer in found["routing"]["layers"]] == [0, 1]


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"mixing": "hga"}, "mixing='hga' mixes what backbone.vision.encoders make"),
        ({"architecture": "convnext", "patch_size": 4, "image_size": 64}, "ConvNextModel makes maps; list it under"),
        ({"channel_pool": 2}, "channel_pool: list the encoder under backbone.vision.encoders"),
        ({"encoders": [{"channel_pool": 999}]}, "channel_pool=999: the encoder makes 128 features"),
        ({"encoders": [{"image_token": 3}]}, "image_token belong to backbone.vision itself"),
        ({"encoders": [{"hiden_size": 3}]}, r"encoders\[0\].hiden_size'; did you mean 'hidden_size'"),
        ({"encoders": [{"architecture": "convnext", "patch_size": 4, "layers": 2}]}, "ConvNextModel has stages"),
        ({"encoders": [{}], "layers": 2}, "checkpoint and layers belong to each of backbone.vision.encoders"),
        ({"encoders": [{}], "mixing": "hag"}, "did you mean 'hga'"),
    ],
)
def test_encoders_that_cannot_be_are_one_line(vision: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        image_layout(build(VisionConfig, vision, "vision"), None)
