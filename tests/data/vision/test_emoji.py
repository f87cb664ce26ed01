"""The emoji pack is what its manifest says, every picture opens, and what is wrong is said in one line."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision import emoji
from libmoe.data.vision.emoji import SIDE, STYLES, art, concepts, manifest

PACK = files("libmoe.data.vision") / "emoji"


def test_files_are_those_of_the_manifest_and_small():
    found = {item.name: item.read_bytes() for item in PACK.iterdir() if item.name != "manifest.json"}
    licences = found.pop("LICENSES.md")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == manifest()["sha256"]
    assert sum(map(len, found.values())) + len(licences) < 5_000_000


def test_concepts_know_by_whom_they_are_drawn_and_every_picture_opens():
    counts = Counter(style for concept in concepts().values() for style in concept.styles)
    assert {"concepts": len(concepts()), **counts} == manifest()["counts"]
    assert len(concepts()) > 1900 and min(counts.values()) > 1200
    for style in STYLES:
        drawn = [c.hexcode for c in concepts().values() if style in c.styles]
        assert {f"{code}.png" for code in drawn} == set(emoji._archive(style).namelist())
        for code in drawn[::7]:
            image = art(code, style)
            assert image.size == (SIDE, SIDE) and image.mode == "RGBA"
            opacity = np.asarray(image)[..., 3]
            assert opacity.max() > 200 and (opacity > 100).mean() > 0.02


def test_names_and_classes_of_a_concept():
    cat = next(c for c in concepts().values() if c.label == "cat")
    assert (cat.group, cat.subgroup) == ("animals-nature", "animal-mammal")
    assert cat.names == {"de": "Katze", "fr": "chat", "es": "gato"}
    assert "pet" in cat.tags and cat.styles == STYLES


def test_artists_draw_the_same_concept_differently_and_transparent():
    code = next(c.hexcode for c in concepts().values() if c.label == "cat")
    drawn = [np.asarray(art(code, style), float) for style in STYLES]
    assert all(image[0, -1, 3] == 0 or image[-1, 0, 3] == 0 for image in drawn)
    assert all(np.abs(a - b).mean() > 5 for a, b in zip(drawn, drawn[1:] + drawn[:1]))
    assert art(code, "noto", 20).size == (20, 20)


def test_every_source_is_named_with_its_licence_and_notice():
    text = (PACK / "LICENSES.md").read_text(encoding="utf-8")
    for package, entry in manifest()["packages"].items():
        assert f"{package} {entry['version']} | {entry['licence']}" in text
    for notice in ("Twitter, Inc", "creativecommons.org/licenses/by/4.0", "Microsoft Corporation", "Google LLC",
                   "UNICODE LICENSE V3", "Permission is hereby granted, free of charge", "Changes: "):  # fmt: skip
        assert notice in text


def test_unknown_styles_and_missing_pictures_are_one_line():
    with pytest.raises(ConfigError, match="did you mean 'twemoji'"):
        art("1F408", "twemojis")
    undrawn = next(c.hexcode for c in concepts().values() if "fluent" not in c.styles)
    with pytest.raises(DataError, match=f"{undrawn} is not in style 'fluent'"):
        art(undrawn, "fluent")


def test_a_damaged_file_is_refused(monkeypatch):
    monkeypatch.setattr(emoji, "manifest", lambda: {"sha256": {"noto.zip": "0" * 64}})
    with pytest.raises(DataError, match=r"'noto\.zip' of emoji art is damaged; reinstall"):
        emoji._read("noto.zip")


def test_without_pillow_the_extra_is_named_and_names_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    emoji.art.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install libmoe\[vision\]"):
        art("1F408", "noto")
    assert concepts()["1F408"].label == "cat"
