"""A drawn scene is its record, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision.emoji import STYLES, art
from libmoe.data.vision.scenes import SIZE, Scene, SceneConversations, draw, from_record
from libmoe.data.vision.scenes.drawing import lettering
from libmoe.data.vision.scenes.scene import BACKGROUNDS, CORNERS, PARTS, Writing, backgrounds
from libmoe.data.vision.scenes.things import thing
from libmoe.data.vision.scenes.wording import WORDS

CELLS = (thing("cat"), None, Writing("lamp"), thing("pizza"))


def cell(image, place):
    """Pixels of one corner as floats [C, C, 3]."""
    pixels = np.asarray(image, float)
    half = len(pixels) // 2
    row, column = divmod(place, 2)
    return pixels[row * half : (row + 1) * half, column * half : (column + 1) * half]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("background", ["white", "red", "black"])
def test_every_cell_is_the_art_laid_over_the_background(style, background):
    image = draw(Scene(CELLS, background, style))
    assert image.mode == "RGB" and image.size == (SIZE, SIZE)
    ground = np.array(BACKGROUNDS[background], float)
    for place in (0, 3):
        rgba = np.asarray(art(CELLS[place].hexcode, style, 26), float)
        expected = np.tile(ground, (28, 28, 1))
        alpha = rgba[..., 3:] / 255
        expected[1:27, 1:27] = alpha * rgba[..., :3] + (1 - alpha) * ground
        assert np.abs(cell(image, place) - expected).max() <= 1
    assert (cell(image, 1) == ground).all()


def test_writing_is_crisp_and_read_off_against_the_font():
    for background, ink in (("yellow", 0), ("blue", 255)):
        image = draw(Scene(CELLS, background, "noto"))
        pixels = cell(image, 2)
        inked = (pixels == ink).all(-1)
        assert (inked | (pixels == BACKGROUNDS[background]).all(-1)).all()
        mask = np.asarray(lettering("lamp", 28)) > 0
        assert set(np.unique(np.asarray(lettering("lamp", 28)))) == {0, 255}
        assert inked.sum() == mask.sum() > 40
        (top, left), (height, width) = (np.argwhere(inked).min(0) - np.argwhere(mask).min(0)), mask.shape
        assert (inked[top : top + height, left : left + width] == mask).all()


def test_every_text_fits_and_no_two_look_alike():
    masks = {np.asarray(lettering(text, 28)).tobytes() for text in [*WORDS, *map(str, range(1000))]}
    assert len(masks) == len(WORDS) + 1000
    assert lettering("7", 28).size == (12, 22) and lettering("lamp", 28).size == (24, 11)


def test_larger_scenes_are_the_same_scene_and_impossible_sizes_are_refused():
    scene = Scene(CELLS, "green", "noto")
    large = draw(scene, 112)
    assert large.size == (112, 112)
    small = np.asarray(large.resize((SIZE, SIZE)), float)
    assert np.abs(small - np.asarray(draw(scene), float)).mean() < 8
    for size in (54, 57):
        with pytest.raises(ConfigError, match="even and at least 56"):
            draw(scene, size)
    with pytest.raises(ConfigError, match="does not fit"):
        draw(Scene((Writing("letters"), None, None, None), "red", "noto"))


def test_the_record_is_the_scene():
    source = SceneConversations(number=300)
    scenes = [source.scene(n) for n in range(300)]
    assert all(from_record(scene.record()) == scene for scene in scenes)
    assert Scene(CELLS, "red", "noto").record() == {
        "top left": "cat", "bottom left": "text: lamp", "bottom right": "pizza", "background": "red", "style": "noto",
    }  # fmt: skip
    with pytest.raises(DataError, match="no background 'pink'"):
        from_record({"background": "pink", "style": "noto"})


def test_every_arrangement_has_one_background_in_test_one_in_validation_and_six_in_training():
    names = ["cat", "pizza", "bus", "rose"]
    arrangements = [
        tuple(thing(n) if place == at else None for place in range(4)) for at in range(4) for n in names
    ]
    shares = []
    for cells in [CELLS, *arrangements]:
        parts = {part: backgrounds(cells, part) for part in PARTS}
        assert {part: len(found) for part, found in parts.items()} == {"test": 1, "validation": 1, "train": 6}
        assert sorted(b for found in parts.values() for b in found) == sorted(BACKGROUNDS)
        shares += parts["test"]
        for part, found in parts.items():
            assert all(Scene(cells, background, "noto").part == part for background in found)
    assert len(set(shares)) >= 5  # which one it is depends on the arrangement


def test_colours_can_be_told_apart():
    colours = [np.array(c, float) for c in BACKGROUNDS.values()]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 60 and len(CORNERS) == 4
