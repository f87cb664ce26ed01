"""The encoder that knows scenes: its labels are what the scenes show, it learns, and it is saved as others are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import scene_encoder
import torch

from libmoe.data.vision.scenes.scene import Scene, Writing
from libmoe.data.vision.scenes.things import heldout, thing
from libmoe.models.encoders import VisionConfig, build_encoder


def make(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scene_encoder.py", str(out), *more])
    scene_encoder.main()


def test_each_patch_is_told_what_its_cell_shows() -> None:
    scene = Scene((thing("whale"), None, Writing("moon"), Writing("7")), "blue", "noto")
    labels = scene_encoder.labels_of(scene, side=4)
    shown = [scene_encoder.THINGS[number] for number in labels["things"].tolist()]
    assert shown[:4] == ["whale", "whale", "nothing", "nothing"] == shown[4:8]
    assert shown[8:] == ["writing"] * 8
    letters = ["".join(scene_encoder.LETTERS[n] for n in row) for row in labels["letters"][8:12].tolist()]
    assert letters == ["moon", "moon", "7   ", "7   "] and (labels["letters"][:8] == -1).all()
    assert not {t.name for t in heldout()} & set(scene_encoder.THINGS)


def test_it_learns_what_scenes_show() -> None:
    config = VisionConfig(
        architecture="siglip_vision_model", hidden_size=64, num_hidden_layers=1, image_size=56,
        num_attention_heads=2, extra={"vision_use_head": False},
    )  # fmt: skip
    right = scene_encoder.learn(
        build_encoder(config, seed=0), scene_encoder.make_image_processor(56), steps=60, batch=16, lr=3e-3
    )
    assert right["grounds"] > 0.9, "by chance it would be an eighth"


def test_a_batch_without_letters_has_no_loss_of_letters() -> None:
    labels = scene_encoder.labels_of(Scene((thing("whale"), None, None, None), "red", "noto"), side=4)
    reader = scene_encoder.Reader(8, 16)
    found = scene_encoder.losses(reader(torch.randn(1, 16, 8)), {name: v.unsqueeze(0) for name, v in labels.items()})
    assert float(found["letters"]) == 0 and all(loss.isfinite() for loss in found.values())


def test_it_is_saved_with_its_processor_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(monkeypatch, tmp_path / "encoder", "--steps", "2", "--batch", "2")
    assert "of new scenes" in capsys.readouterr().out
    saved = build_encoder(VisionConfig(checkpoint=str(tmp_path / "encoder")))
    again = tmp_path / "cut"
    make(monkeypatch, again, "--start", str(tmp_path / "encoder"), "--layers", "2", "--steps", "1", "--batch", "2")
    cut = build_encoder(VisionConfig(checkpoint=str(again)))
    assert (saved.config.num_hidden_layers, cut.config.num_hidden_layers) == (4, 2)
    with torch.no_grad():
        assert saved(pixel_values=torch.zeros(1, 3, 56, 56)).last_hidden_state.shape == (1, 16, 128)
    capsys.readouterr()
    make(monkeypatch, again)
    assert "is there already" in capsys.readouterr().out


def test_a_start_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        make(monkeypatch, tmp_path / "encoder", "--start", str(tmp_path / "nowhere"))
    assert not (tmp_path / "encoder").exists()
