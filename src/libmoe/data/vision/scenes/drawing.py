"""A scene as an image."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from libmoe.core.errors import ConfigError
from libmoe.data.vision.emoji import art
from libmoe.data.vision.images import require_pillow
from libmoe.data.vision.scenes.scene import BACKGROUNDS, Scene, Writing

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 56
"""Pixels along both axes: four cells of 28, and a letter of the bitmap font is 6 wide."""


def check_size(size: int) -> int:
    """Raises ConfigError for a size at which cells are uneven or four letters do not fit."""
    if size < SIZE or size % 2:
        raise ConfigError(f"size={size} of scenes; it must be even and at least {SIZE}")
    return size


def draw(scene: Scene, size: int = SIZE) -> Image:
    """The scene, RGB, ``size`` px along both axes.

    A thing fills 13/14 of its cell.  Writing is enlarged by the greatest whole number that fits, so that it is crisp,
    and is black or white, whichever the background lets be seen.

    Raises:
        ConfigError: an impossible size, or Pillow is not installed.
    """
    cell = check_size(size) // 2
    require_pillow()
    import PIL.Image

    ground = BACKGROUNDS[scene.background]
    image = PIL.Image.new("RGB", (size, size), ground)
    for place, content in enumerate(scene.cells):
        if content is None:
            continue
        if isinstance(content, Writing):
            red, green, blue = ground
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128  # luma of ITU-R BT.601
            mask = lettering(content.text, cell)
            ink: Image | tuple[int, int, int] = (0, 0, 0) if bright else (255, 255, 255)
        else:
            ink = mask = art(content.hexcode, scene.style, cell * 13 // 14)
        width, height = mask.size
        corner = (place % 2 * cell + (cell - width) // 2, place // 2 * cell + (cell - height) // 2)
        image.paste(ink, (*corner, corner[0] + width, corner[1] + height), mask)
    return image


@functools.lru_cache(1024)
def lettering(text: str, cell: int) -> Image:
    """Where the ink of a text goes: an image of 0 and 255 that fits into ``cell`` px."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default_imagefont()
    _, _, width, height = map(int, font.getbbox(text))
    mask = PIL.Image.new("L", (width, height))
    PIL.ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    times = min(cell // width, cell // height)
    if times < 1:
        raise ConfigError(f"{text!r} does not fit into a cell of {cell} px; at most {cell // 6} letters do")
    return mask.resize((width * times, height * times), PIL.Image.Resampling.NEAREST)
