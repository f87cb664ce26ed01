"""The embedded emoji art: the same concepts drawn by three artists, with names in four languages.

Sources, versions and licences are in ``emoji/LICENSES.md`` and ``emoji/manifest.json``; the pack is made by
``tools/build_emoji.py``.  Pictures need Pillow (``pip install libmoe[vision]``), names do not.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from libmoe.core.errors import DataError, unknown
from libmoe.data.vision.images import require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

STYLES = ("noto", "twemoji", "fluent")
"""Artists: Noto Emoji, Twemoji and Fluent Emoji (flat)."""

SIDE = 32
"""Pixels of a picture, along both axes."""

_PACK = files("libmoe.data.vision") / "emoji"


@dataclass(frozen=True)
class Concept:
    """One emoji, whoever draws it.

    Attributes:
        hexcode: its code points; names its pictures.
        label: its name in Unicode's data, in English.
        tags: keywords, in English.
        group, subgroup: Unicode's classes (``animals-nature``, ``animal-mammal``).
        names: its name by language (``de``, ``fr``, ``es``).
        styles: the artists of :data:`STYLES` that drew it.
    """

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    names: Mapping[str, str]
    styles: tuple[str, ...]


@functools.cache
def concepts() -> Mapping[str, Concept]:
    """All concepts by hexcode, in the order of Unicode.  Raises DataError where the pack is damaged."""
    lines = _read("concepts.jsonl").decode().splitlines()
    entries = [json.loads(line) for line in lines]
    return {
        e["hexcode"]: Concept(**(e | {"tags": tuple(e["tags"]), "styles": tuple(e["styles"])}))
        for e in entries
    }


@functools.lru_cache(4096)
def art(hexcode: str, style: str, side: int = SIDE) -> Image:
    """The picture of a concept: RGBA, transparent around it, ``side`` px along both axes.

    It is kept for the next call; copy it before drawing on it.

    Raises:
        ConfigError: an unknown style, or Pillow is not installed.
        DataError: nobody drew the concept in that style, or the pack is damaged.
    """
    if style not in STYLES:
        raise unknown("style of emoji art", style, STYLES)
    require_pillow()
    import PIL.Image

    try:
        data = _archive(style).read(f"{hexcode}.png")
    except KeyError:
        raise DataError(f"the emoji {hexcode} is not in style {style!r}") from None
    image = PIL.Image.open(io.BytesIO(data)).convert("RGBA")
    return image if side == SIDE else image.resize((side, side), PIL.Image.Resampling.LANCZOS)


def manifest() -> dict[str, Any]:
    """Versions of the sources, counts, and the SHA-256 of every file of the pack."""
    found: dict[str, Any] = json.loads((_PACK / "manifest.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def _archive(style: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(_read(f"{style}.zip")))


def _read(name: str) -> bytes:
    data = (_PACK / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest()["sha256"][name]:
        raise DataError(f"the embedded file {name!r} of emoji art is damaged; reinstall libmoe")
    return data
