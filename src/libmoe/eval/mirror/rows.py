"""JSON files row by row, each value as it is written.

The loader of ``datasets`` for JSON takes texts that look like dates for dates, which changes prompts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from libmoe.core.errors import DataError

BATCH = 1000
"""Rows whose types are looked at together."""


def read_json(files: Sequence[Path]) -> datasets.Dataset:
    """Objects of ``files``, one a line or in one list; memory-mapped, whatever their number.

    Raises:
        DataError: a line is not JSON or no object, or there are no rows.
    """
    features = _features(files)
    if not features:
        raise DataError("it has no rows")
    stamps = [
        (str(file), file.stat().st_mtime_ns) for file in files
    ]  # what a prepared copy is found again by
    return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs={"stamps": stamps})


def _rows(stamps: Sequence[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    for path, _ in stamps:
        yield from _objects(Path(path))


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.suffix == ".gz"
        else open(file, encoding="utf-8") as text
    ):
        first = text.read(1)
        text.seek(0)
        if first == "[":
            try:
                rows = enumerate(json.load(text))
            except ValueError as error:
                raise DataError(f"it is not JSON: {error}") from None
            yield from (_object(row, f"item {number}") for number, row in rows)
            return
        for number, line in enumerate(text, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    raise DataError(f"line {number} is not JSON") from None
                yield _object(row, f"line {number}")


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place} is no object")
    return row


def _features(files: Sequence[Path]) -> datasets.Features:
    """The type of each column over all rows; columns of several types hold any JSON."""
    schema, mixed = pyarrow.schema([]), set()
    objects = (row for file in files for row in _objects(file))
    while rows := list(islice(objects, BATCH)):
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in mixed:
                try:
                    kind = pyarrow.array([row.get(name) for row in rows]).type
                    found = pyarrow.schema([(name, kind)])
                    schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
                except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
                    mixed.add(name)
    features = datasets.Features.from_arrow_schema(schema)
    for name in mixed:
        if not hasattr(datasets, "Json"):
            raise DataError(f"column {name!r} holds values of several types")
        features[name] = datasets.Json()
    return features
