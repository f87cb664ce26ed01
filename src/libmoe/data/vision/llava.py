"""Files of conversations in the format of LLaVA with a folder of images, as a source of training rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from libmoe.core.errors import DataError
from libmoe.core.files import digest
from libmoe.data.vision.images import open_image, require_pillow, verify_image
from libmoe.data.vision.kept import Arrays, keep_arrays
from libmoe.data.vision.llava_rows import (
    MISSING,
    PROBLEMS,
    UNREADABLE,
    BrokenRowError,
    LlavaRow,
    parse_line,
    parse_row,
)
from libmoe.data.vision.rows import Conversation

_FORMAT = "1"  # part of the cache key: raise it when what is kept or found changes


class LlavaFile:
    """The usable rows of a file; implements :class:`~libmoe.data.vision.rows.Conversations`.

    Opening looks at every row and at the headers of every image.  What it finds is kept in the cache folder under
    the file's digest, so that later starts only look again at images that were missing or broken.

    Args:
        path: ``.json`` (a list, read whole) or ``.jsonl`` (a row a line, read when it is asked for); see
            :mod:`~libmoe.data.vision.llava_rows`.
        images: the folder that the rows' image names start from; by default that of ``path``.
        strict: refuse a file with a broken row.
        cache_dir: default ``$LIBMOE_CACHE`` or ``~/.cache/libmoe``.
        progress: show a bar where opening takes long.

    Attributes:
        problems: names of the rows left out (the file, and the line or place in its list), by problem.
        fingerprint: SHA-256 of the file, of which rows are used, and of their images' sizes in bytes.

    Raises:
        DataError: no such file, no JSON list, no usable row, or with ``strict`` any broken one.
        ConfigError: there are images and no Pillow.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        strict: bool = False,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file() or self.path.suffix not in (".json", ".jsonl"):
            raise DataError(f"{str(path)!r} is no .json or .jsonl file of conversations")
        self.images = Path(self.path.parent if images is None else images).expanduser()
        content = digest(self.path)
        key = (_FORMAT, self.path.suffix, content, str(self.images.resolve()))
        kept = keep_arrays("llava", key, partial(self._look, progress), cache_dir)
        self._lines, self._starts = kept["lines"], kept["starts"]
        # An image may have been put there since.
        again = np.flatnonzero(np.isin(kept["problem"], [_number(MISSING), _number(UNREADABLE)]))
        self._check(again.tolist(), kept, progress)
        problem = kept["problem"]
        self._rows = np.flatnonzero(problem == 0)
        self.problems: dict[str, list[str]] = {
            name: [self._name(place) for place in np.flatnonzero(problem == number).tolist()]
            for number, name in enumerate(PROBLEMS, start=1)
            if (problem == number).any()
        }
        known = content.encode() + problem.tobytes() + kept["sizes"].tobytes()
        self.fingerprint = hashlib.sha256(known).hexdigest()
        self._refuse(strict, problem)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Conversation:
        """A usable row, counted without those left out."""
        place = int(self._rows[number])
        row = self._parse(place)
        image = None if row.image is None else partial(open_image, self.images / row.image)
        return Conversation(self._name(place), row.turns, image, row.task)

    def _name(self, place: int) -> str:
        return f"{self.path.name}:{self._lines[place]}"

    def _parse(self, place: int) -> LlavaRow:
        if self.path.suffix == ".json":
            return parse_row(self._records[place], self._name(place))
        with open(self.path, "rb") as file:
            file.seek(self._starts[place])
            return parse_line(file.readline(), self._name(place))

    @cached_property
    def _records(self) -> list[Any]:
        try:
            records = json.loads(self.path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{str(self.path)!r} is not valid JSON ({str(error)[:80]}); a file with one object a line is .jsonl"
            ) from None
        if not isinstance(records, list):
            raise DataError(f"{str(self.path)!r} holds no list of rows")
        return records

    def _look(self, progress: bool) -> Arrays:
        """By place: the line, where it starts, the number of its problem (0: none) and its image's bytes."""
        if self.path.suffix == ".json":
            self._lines, self._starts = np.arange(1, len(self._records) + 1), np.empty(0, dtype=np.int64)
        else:
            with open(self.path, "rb") as file:
                widths = [(len(line), bool(line.strip())) for line in file]
            ends = np.cumsum([width for width, _ in widths], dtype=np.int64)
            used = np.flatnonzero([text for _, text in widths])
            self._lines, self._starts = used + 1, np.concatenate([[0], ends])[used]
        found = {"lines": self._lines, "starts": self._starts}
        found |= {name: np.zeros(len(self._lines), dtype=np.int64) for name in ("problem", "sizes")}
        self._check(range(len(self._lines)), found, progress)
        return found

    def _check(self, places: Sequence[int], found: Arrays, progress: bool) -> None:
        from tqdm import tqdm

        # delay: a bar only where the work takes long enough to wonder.
        for place in tqdm(places, desc="checking", unit="row", delay=2.0, disable=not progress):
            try:
                size, number = self._image_bytes(place), 0
            except BrokenRowError as error:
                size, number = 0, _number(error.problem)
            found["sizes"][place], found["problem"][place] = size, number

    def _image_bytes(self, place: int) -> int:
        row = self._parse(place)
        if row.image is None:
            return 0
        require_pillow()
        path = self.images / row.image
        if not os.path.isfile(path):  # unlike Path's, it takes names that no system allows
            raise BrokenRowError(self._name(place), MISSING)
        try:
            verify_image(path)
            return path.stat().st_size
        except Exception:  # decoders raise many kinds for a broken file
            raise BrokenRowError(self._name(place), UNREADABLE) from None

    def _refuse(self, strict: bool, problem: np.ndarray) -> None:
        if not len(problem):
            raise DataError(f"{str(self.path)!r} holds no row")
        broken = np.flatnonzero(problem).tolist()
        if len(self) and not (strict and broken):
            return
        first = f"{self._name(broken[0])} ({PROBLEMS[problem[broken[0]] - 1]})"
        rest = f"leave out strict to use the other {len(self)}" if len(self) else "none is usable"
        raise DataError(f"{len(broken)} of {len(problem)} rows cannot be used, the first is {first}; {rest}")


def _number(problem: str) -> int:
    return 1 + PROBLEMS.index(problem)
