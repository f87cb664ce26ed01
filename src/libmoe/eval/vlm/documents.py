"""Documents of a vision-language task: slices of them, and how they are kept without their images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from libmoe.core.errors import DataError
from libmoe.eval.harness.documents import reason

_PICTURE = re.compile(r"data:image/|iVBORw0KGgo|/9j/|R0lGOD|UklGR")
"""How base64 text of an image begins: as an address, PNG, JPEG, GIF and WebP."""


class VisionDocuments:
    """The documents that a task of lmms-eval is evaluated on, with images and without.

    Attributes:
        broken: number of a document -> what is wrong with it.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self.split = task.config.test_split if task.has_test_docs() else task.config.validation_split
        self.broken: dict[int, str] = {}
        self._full, self._light = task.dataset[self.split], task.dataset_no_image[self.split]
        self._kept: Any = None

    def __len__(self) -> int:
        return len(self._full)

    def sound(self, start: int, stop: int) -> list[int]:
        """Numbers of the documents in ``start:stop`` from which the task can make a prompt and a target."""
        numbers = []
        for number in range(start, stop):
            try:
                document = self._light[number]
                if self.task.doc_to_text(document) is None or self.task.doc_to_target(document) is None:
                    raise DataError("the prompt or the target is missing")
            except Exception as error:  # templates and functions of a task fail in any way
                self.broken[number] = stable_reason(error)
            else:
                numbers.append(number)
        return numbers

    def select(self, numbers: list[int]) -> Any:
        """Let the task see these documents only; returns what they are looked up in."""
        self.task.dataset = {self.split: self._full.select(numbers)}
        self.task.dataset_no_image = {self.split: self._light.select(numbers)}
        self.task.task_docs = self.task.dataset[self.split]
        self._kept = undecoded(self.task.dataset[self.split])
        return self.task.dataset

    def light(self, place: int) -> dict[str, Any]:
        """A document of the selection as it is scored."""
        return dict(self.task.dataset_no_image[self.split][place])

    def kept(self, place: int) -> dict[str, Any]:
        """A document of the selection as it is written to disk."""
        return slim(self._kept[place])


def stable_reason(error: BaseException) -> str:
    """One line that names what went wrong, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", reason(error))


def undecoded(dataset: Any) -> Any:
    """``dataset`` with images as they are stored: files are hashed, not decoded."""
    from datasets import Image

    for name, feature in dataset.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(inner, Image):
            dataset = dataset.cast_column(name, type(feature)(Image(decode=False)))
    return dataset


def slim(value: Any) -> Any:
    """``value`` with images replaced by their size and hash."""
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            return {"path": value["path"], **(_digest(value["bytes"]) if value["bytes"] is not None else {})}
        return {key: slim(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [slim(v) for v in value]
    if isinstance(value, (bytes, bytearray)):
        return _digest(bytes(value))
    if isinstance(value, str) and _PICTURE.match(value):
        return _digest(value.encode())
    if hasattr(value, "tobytes") and hasattr(value, "size") and hasattr(value, "mode"):  # PIL's
        width, height = value.size
        return {"width": width, "height": height, **_digest(value.tobytes())}
    return value


def _digest(content: bytes) -> dict[str, Any]:
    return {"length": len(content), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}
