"""Images in local files: as the hub's parquet has them, as base64 text, or as files beside the table."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF and WebP in base64


def decode_images(data: Any, folder: Path, from_text: bool) -> Any:
    """``data`` (a ``datasets.Dataset``) with columns that hold images decoded to PIL images when they are read.

    Args:
        folder: where the table lies.
        from_text: take a column of text for one of images when its first value is a file beside the table or the
            base64 text of a picture.  Not for files that have a type for images: there a text is meant as one.
    """
    import datasets

    for name, feature in data.features.items():
        inner = getattr(feature, "feature", None)
        many = inner is not None
        kind = inner if many else feature
        if isinstance(kind, datasets.Image):
            continue
        wanted = datasets.List(datasets.Image()) if many else datasets.Image()
        if isinstance(kind, dict) and set(kind) == {"bytes", "path"}:
            data = data.cast_column(name, wanted)
        elif from_text and isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string"):
            first = _first(data, name)
            if first is not None and is_image(first, folder):
                data = data.map(
                    _read,
                    fn_kwargs={"name": name, "folder": folder},
                    features=_with(data.features, name, wanted),
                )
    return data


def is_image(text: str, folder: Path) -> bool:
    if text.startswith(("data:image/", *_HEADS)):
        return True
    return Path(text).suffix.lower() in ENDINGS and len(text) < 1024 and (folder / text).is_file()


def load_image(text: str, folder: Path) -> dict[str, Any]:
    """The picture's bytes; of a broken one its text as a path, so that reading this row fails and no other."""
    path = folder / text if len(text) < 1024 else None
    if path is not None and path.is_file():
        return {"bytes": path.read_bytes(), "path": None}
    try:
        return {"bytes": base64.b64decode(text.partition(",")[2] or text, validate=True), "path": None}
    except binascii.Error:
        return {"bytes": None, "path": str(path) if path is not None else f"{text[:40]}..."}


def _read(row: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    value = row[name]
    if isinstance(value, str):
        return {name: load_image(value, folder)}
    return {name: None if value is None else [load_image(v, folder) for v in value if v is not None]}


def _first(data: Any, name: str) -> str | None:
    for value in data.select_columns([name])[name] if len(data) else ():
        for text in [value] if isinstance(value, str) else value or ():
            return text
    return None


def _with(features: Any, name: str, feature: Any) -> Any:
    copy = features.copy()
    copy[name] = feature
    return copy
