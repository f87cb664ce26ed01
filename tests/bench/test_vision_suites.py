"""The vision-language suites: one dense model, five routers, and every upcycled one begins where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from libmoe.bench import load_grid
from libmoe.bench.cell import CellSpec, run_cell
from libmoe.bench.match import match_sizes
from libmoe.bench.recording import Recorder
from libmoe.layers import moe_layers
from libmoe.models import save
from libmoe.models.accounting import count_parameters
from libmoe.models.encoders import VisionConfig, build_encoder
from libmoe.train import build_model
from libmoe.train.build import tokens_of
from libmoe.train.recipe import load_recipe

FIVE = ["smoe", "xmoe", "sigmoid", "hyper-router", "perturbed-cosine"]
SMALL = {"hidden_size": 96, "num_attention_heads": 4, "image_size": 56}
ENCODERS = {
    "siglip": VisionConfig(None, "siglip_vision_model", num_hidden_layers=4, extra={"vision_use_head": False}, **SMALL),
    "dinov2": VisionConfig(None, "dinov2", num_hidden_layers=3, **SMALL),
}


@pytest.fixture(params=["siglip", "dinov2"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of an encoder, and an untrained model of its stage 2."""
    language = build_model(load_recipe("vlm-language"), 2048)
    save(language, tmp_path / "language")
    build_encoder(ENCODERS[request.param]).save_pretrained(tmp_path / "encoder")
    recipe = load_recipe(
        f"vlm-{request.param}-1",
        [f"backbone.checkpoint={tmp_path / 'language'}", f"backbone.vision.checkpoint={tmp_path / 'encoder'}"],
    )
    model = build_model(recipe, *tokens_of(recipe))
    save(model, tmp_path / "model")
    return request.param, tmp_path / "model"


def test_all_entries_begin_with_the_loss_of_stage_two_and_a_cell_runs(
    start: tuple[str, Path], tmp_path: Path
) -> None:
    encoder, model = start
    grid = load_grid(
        f"vlm-mini-{encoder}",
        [
            "prepare=[]", f"recipe.backbone.checkpoint={model}", "recipe.train.steps=1", "recipe.train.warmup_steps=0",
            "recipe.train.batch_size=4", "recipe.train.eval_every=null", "recipe.data.conversations.rows=32",
            "recipe.eval.windows_per_domain=2", "recipe.eval.validation_windows=1", "recipe.train.log_every=1",
        ],
    )  # fmt: skip
    assert grid.families == {"routers": FIVE} and len(grid.seeds) >= 2
    sizes = match_sizes(grid)
    ids = torch.randint(0, 2000, (2, 24))
    ids[:, 2:18] = 2048
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 56, 56)}
    logits = {}
    for entry in grid.entries:
        recipe = sizes[entry.key].recipe(grid, entry, 0)
        made = build_model(recipe, *tokens_of(recipe)).eval()
        assert count_parameters(made) == sizes[entry.key].cost.total_params
        with torch.no_grad():
            logits[entry.key] = made(**inputs).logits
        paths = [path for path, _ in moe_layers(made)]
        blocks = sum("tower.encoder" in name and name.endswith(".mlp") for name, _ in made.named_modules())
        assert len(paths) == (0 if entry.key == "dense" else blocks + 1)
        assert all("vision_tower" in path or "projector" in path for path in paths)
    assert all((logits[key] - logits["dense"]).abs().max() < 1e-4 for key in FIVE)

    recipe = sizes["smoe"].recipe(grid, grid.entry("smoe"), 0)
    row = run_cell(CellSpec("smoe", "smoe", recipe, str(tmp_path / "smoe-s0")))
    assert (row["status"], row["error"]) == ("ok", None)
    said: list[str] = []
    Recorder(tmp_path, tmp_path / "results.sqlite", said.append).add([row | {"method": "smoe", "seed": 0}])
    assert not said  # its tasks are its own, and no evaluation is missed
    assert set(row["tasks"]) == set(row["domains"]) and row["tasks"]["count"]["chance"] == pytest.approx(0.2)
