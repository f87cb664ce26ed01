"""Image processors without torchvision: padded or stretched, saved and loaded, and refused where batches need more."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision.images import (
    load_image_processor,
    make_image_processor,
    open_image,
    pixel_shape,
    to_pixels,
    verify_image,
)

RED = (255, 0, 0)


def _clip(folder, **changes):
    """A CLIP tower's processor: the shorter side is resized and the middle cut out."""
    written = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.2, 0.2],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(written | changes))
    return folder


def test_pad_keeps_proportions_and_stretch_fills_the_square():
    wide = Image.new("RGB", (40, 20), RED)
    padded = to_pixels(make_image_processor(16, (0.5, 0.25, 0.75), aspect="pad"), wide)
    stretched = to_pixels(make_image_processor(16, aspect="stretch"), wide)
    assert padded.shape == stretched.shape == (3, 16, 16) and padded.dtype == torch.float32
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    torch.testing.assert_close(stretched, red.expand(3, 16, 16))
    inside = torch.tensor([1.0, -0.5, -1.5])[:, None, None]  # (color - mean) / 0.5
    torch.testing.assert_close(padded[:, 6:10], inside.expand(3, 4, 16))
    assert padded[:, [0, 1, 14, 15]].abs().max() < 0.01  # the mean color, but for rounding to a byte


def test_a_processor_comes_back_from_disk(tmp_path):
    processor, image = make_image_processor(16, aspect="pad"), Image.new("RGB", (40, 20), RED)
    processor.save_pretrained(tmp_path)
    assert torch.equal(to_pixels(load_image_processor(tmp_path), image), to_pixels(processor, image))


def test_a_towers_processor_is_used_as_it_is_or_padded_or_stretched(tmp_path):
    wide = Image.new("RGB", (84, 28), RED)
    wide.paste((0, 0, 255), (28, 0, 56, 28))  # its middle is blue
    cut = to_pixels(load_image_processor(_clip(tmp_path)), wide)
    pad, stretch = (to_pixels(load_image_processor(tmp_path, aspect), wide) for aspect in ("pad", "stretch"))
    assert cut.shape == pad.shape == stretch.shape == (3, 28, 28)
    blue = torch.tensor([(0 - 0.4) / 0.2, (0 - 0.5) / 0.2, (1 - 0.6) / 0.2])
    torch.testing.assert_close(cut[:, 14, 1], blue)
    assert not torch.allclose(stretch[:, 14, 1], blue) and torch.allclose(stretch[:, 14, 14], blue)
    assert pad[:, 1].abs().max() < 0.02 and torch.allclose(pad[:, 14, 14], blue, atol=1e-3)


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (1, 1), (1, 2000), (2000, 1)])
def test_thin_images_keep_their_colors(size):
    for aspect in ("pad", "stretch"):
        pixels = to_pixels(make_image_processor(8, aspect=aspect), Image.new("RGB", size, RED))
        assert pixels.shape == (3, 8, 8)
        assert pixels[0].max() >= pixels[1].max() and pixels[1].min() <= pixels[0].min()
        assert torch.equal(pixels[1], pixels[2])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_file_is_opened_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 4)).save(path)
    verify_image(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (5, 4)
    assert to_pixels(make_image_processor(8), image).shape == (3, 8, 8)


def test_processors_that_batches_cannot_use_are_refused(tmp_path):
    free = load_image_processor(_clip(tmp_path, do_center_crop=False))
    with pytest.raises(ConfigError, match="keeps the proportions of images"):
        pixel_shape(free)
    with pytest.raises(ConfigError, match=r"needs a square size, .* has 28 x 14"):
        load_image_processor(_clip(tmp_path, crop_size={"height": 28, "width": 14}), "pad")
    with pytest.raises(ConfigError, match=r"pixel_values of shape \[1, 2, 3, 4, 4\]"):
        to_pixels(lambda **inputs: {"pixel_values": torch.zeros(1, 2, 3, 4, 4)}, Image.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspect": "padd"}, "unknown aspect 'padd'; did you mean 'pad'"),
        ({"size": 0}, "size=0"),
        ({"std": (0.5, 0.5, 0.0)}, "positive std"),
        ({"mean": (0.5,)}, "give 3 values"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_image_processor(**({"size": 8} | options))


def test_a_folder_without_a_processor_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot load an image processor from"):
        load_image_processor(tmp_path)


def test_missing_pillow_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for make in (lambda: make_image_processor(8), lambda: load_image_processor(tmp_path)):
        with pytest.raises(ConfigError, match=r"pip install libmoe\[vision\]"):
            make()
