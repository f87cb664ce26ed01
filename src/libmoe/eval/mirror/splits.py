"""The splits of a local data set, each read when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from libmoe.core.errors import DataError
from libmoe.eval.mirror.images import decode_images
from libmoe.eval.mirror.locate import FORMATS
from libmoe.eval.mirror.rows import read_json


class LocalSplits(datasets.DatasetDict):
    """What ``datasets.load_dataset`` returns, over local files.

    Harnesses mention splits they do not need (training examples when no shots are asked for).  A split without a file
    is therefore empty, and an error only when a document is taken from it; a split that cannot be read is an error
    only when it is asked for.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]], load: Callable[..., Any], missing: str) -> None:
        super().__init__()
        self._files = dict(files)
        self._load = load
        self._missing = missing

    def __missing__(self, split: str) -> datasets.Dataset:
        if split not in self._files:
            return AbsentSplit(self._missing.format(split=split), self._features())
        self[split] = read_split(self._files[split], self._load)
        return dict.__getitem__(self, split)

    def _features(self) -> datasets.Features | None:
        for split in self._files:
            try:
                return self[split].features
            except DataError:
                continue
        return None

    def _read_all(self) -> None:
        for split in self._files:
            if split not in dict.keys(self):
                try:
                    self[split]
                except DataError:
                    continue  # whoever needs it is told

    def __iter__(self) -> Iterator[str]:
        self._read_all()
        return iter(dict.keys(self))

    def __len__(self) -> int:
        self._read_all()
        return dict.__len__(self)

    def __contains__(self, split: object) -> bool:
        return split in self._files

    def keys(self) -> Any:
        self._read_all()
        return dict.keys(self)

    def values(self) -> Any:
        self._read_all()
        return dict.values(self)

    def items(self) -> Any:
        self._read_all()
        return dict.items(self)

    def copy(self) -> dict[str, datasets.Dataset]:
        self._read_all()
        return dict(dict.items(self))


class AbsentSplit(datasets.Dataset):
    """No documents, and the reason when one is wanted."""

    def __init__(self, reason: str, features: datasets.Features | None) -> None:
        empty = datasets.Dataset.from_dict({name: [] for name in features or ()}, features=features)
        super().__init__(empty.data)
        self.reason = reason

    def __getitem__(self, key: Any) -> Any:
        raise DataError(self.reason)


def read_split(files: Sequence[Path], load: Callable[..., Any]) -> datasets.Dataset:
    """The rows of ``files``, which share one format.

    Args:
        load: the real ``datasets.load_dataset``.

    Raises:
        DataError: a file does not parse.
    """
    formats = {FORMATS[file.name.removesuffix(".gz").rpartition(".")[2]] for file in files}
    if len(formats) > 1:
        raise DataError(f"{files[0].parent} holds files of several formats for one split: {_names(files)}")
    format_ = formats.pop()
    try:
        if format_ == "json":
            data = read_json(files)
        else:
            options = {"sep": "\t"} if files[0].name.removesuffix(".gz").endswith(".tsv") else {}
            data = load(format_, data_files={"data": [str(f) for f in files]}, split="data", **options)
    except DataError as error:
        raise DataError(f"{_names(files)} cannot be read: {error}") from error
    except Exception as error:
        cause = error.__cause__ or error
        text = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}".removesuffix(": ")
        raise DataError(f"{_names(files)} cannot be read: {text}") from error
    return decode_images(data, files[0].parent, from_text=format_ != "parquet")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(str(file) for file in files[:2]) + (", ..." if len(files) > 2 else "")
