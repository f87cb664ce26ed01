"""Frames from files, and made-up scenes whose missing sensors cost a known amount."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.scene_graph import (
    ENTITIES,
    MODALITIES,
    PREDICATES,
    Triplet,
    from_text,
    load_frames,
    score_graphs,
    synthetic_scenes,
    visible_graph,
)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_label_spaces_have_their_sizes() -> None:
    assert len(set(ENTITIES)) == 23 and len(set(PREDICATES)) == 16


def test_frames_come_by_take_and_timepoint(tmp_path: Path) -> None:
    relations = [["nurse", "instrument", "holding"], ["patient", "operating_table", "lyingOn"]]
    write(tmp_path / "001_PKA" / "000010.json", {"relationships": relations})
    write(tmp_path / "001_PKA" / "000002.json", {"relationships": []})
    write(tmp_path / "002_4DOR" / "000000.json", {"relationships": relations[:1]})
    frames = load_frames(tmp_path)
    assert [(f.take, f.timepoint, f.data_set) for f in frames] == [
        ("001_PKA", 2, "MM-OR"),
        ("001_PKA", 10, "MM-OR"),
        ("002_4DOR", 0, "4D-OR"),
    ]
    assert frames[1].graph == [
        Triplet("nurse", "holding", "instrument"),
        Triplet("patient", "lyingOn", "operating_table"),
    ]
    records = [{"take_name": "002_4DOR", "frame_id": "000000", "relationships": relations[:1]}]
    write(tmp_path / "test.json", records)
    assert load_frames(tmp_path / "test.json") == frames[2:]


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scene graphs"):
        load_frames(tmp_path)
    for content, text in (
        ({"relations": []}, "KeyError"),
        ({"relationships": [["nurse", "holding"]]}, "is no scene graph"),
        ({"relationships": [["nurse", "patiant", "holding"]]}, "did you mean 'patient'"),
        ([], "holds no object"),
    ):
        write(tmp_path / "take" / "000001.json", content)
        with pytest.raises(DataError, match=r"000001\.json.*") as error:
            load_frames(tmp_path)
        assert text in str(error.value)


def test_every_relation_shows_in_one_modality() -> None:
    assert sorted(p for shown in MODALITIES.values() for p in shown) == sorted(PREDICATES)


def test_scenes_are_reproducible_and_their_target_is_their_graph() -> None:
    one, two = (synthetic_scenes(20, seed=3, absent=0.3) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.target == b.target and a.modalities.keys() == MODALITIES.keys()
        for name, seen in a.modalities.items():
            assert (seen is None and b.modalities[name] is None) or torch.equal(seen, b.modalities[name])
    assert any(seen is None for scene in one for seen in scene.modalities.values())
    assert all(len(from_text(scene.target)) == 4 for scene in one)


def test_a_missing_modality_costs_the_relations_that_it_shows_and_no_others() -> None:
    scenes = synthetic_scenes(200, noise=0.05)
    true = [from_text(scene.target) for scene in scenes]
    assert score_graphs(true, [visible_graph(scene) for scene in scenes], resamples=20).macro.f1 == 1.0
    for name, shown in MODALITIES.items():
        without = [replace(scene, modalities=scene.modalities | {name: None}) for scene in scenes]
        found = score_graphs(true, [visible_graph(scene) for scene in without], resamples=20)
        assert found.macro.f1 == pytest.approx(1 - len(shown) / len(PREDICATES))
        assert {p for p, score in found.predicates.items() if score.f1 == 0} == set(shown)


def test_impossible_scenes_are_refused() -> None:
    with pytest.raises(ConfigError, match="relations=0"):
        synthetic_scenes(1, relations=0)
    with pytest.raises(ConfigError, match="absent=2"):
        synthetic_scenes(1, absent=2)
