"""Local files in place of the hub, for any task of either harness."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from libmoe.core.errors import ConfigError, DataError, nearest
from libmoe.eval.mirror.locate import expected_file, find_splits

LOADERS = {"json", "csv", "parquet", "text", "arrow", "imagefolder"}
"""Loaders of ``datasets`` whose files are given by the task itself."""

HARNESS_TASKS = ("lm_eval.tasks.", "lmms_eval.tasks.")

_HUB_FILE = re.compile(
    r"(?:hf://datasets/|https?://huggingface\.co/datasets/)(?P<path>[^/]+/[^/@]+)(?P<rest>[@/].*)"
)
_SPLIT = re.compile(r"(?P<name>\w+(?:\.\w+)*)(?:\[(?P<from>\d*):(?P<to>\d*)\])?")


@contextlib.contextmanager
def serving(folder: str | Path) -> Iterator[None]:
    """While the block runs, data sets and metrics are read from ``folder`` and never from a network.

    Replaces ``datasets.load_dataset``, through which both harnesses load everything, and ``evaluate.load``, through
    which a few tasks load their metric.  Which files are looked for is told by
    :func:`libmoe.eval.mirror.locate.find_splits`; metrics by the hub's name, ``evaluate-metric/code_eval/``.

    Raises:
        ConfigError: ``folder`` is no folder, or ``datasets`` is not installed.
        DataError: (inside the block) a data set that is asked for has no files, or they cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"data_dir={str(folder)!r} is no folder")
    try:
        import datasets
    except ImportError:
        raise ConfigError("local data sets need: pip install 'libmoe[eval]'") from None
    with contextlib.ExitStack() as stack:
        serve = _Mirror(root, datasets.load_dataset)
        stack.callback(serve.close)
        # Tasks that were loaded before may hold the function by its own name.
        holders = [
            m
            for n, m in list(sys.modules.items())
            if n.startswith(HARNESS_TASKS) and hasattr(m, "load_dataset")
        ]
        for holder in [datasets, *holders]:
            if holder.load_dataset is serve.original:
                stack.enter_context(mock.patch.object(holder, "load_dataset", serve))
        stack.enter_context(_metrics(root))
        stack.enter_context(_without_bars(datasets))
        yield


class _Mirror:
    """Stands in for ``datasets.load_dataset``; once closed it is that function, for whoever kept it."""

    def __init__(self, root: Path, original: Any) -> None:
        self.root = root
        self.original = original
        self.open = True

    def close(self) -> None:
        self.open = False

    def __call__(self, path: str, name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if not self.open:
            return self.original(path, name, *args, **kwargs)
        if path in LOADERS:
            if kwargs.get("data_files"):
                kwargs["data_files"] = self._local(kwargs["data_files"])
            return self.original(path, name, *args, **kwargs)
        if Path(path).is_absolute() and Path(path).exists():
            return self.original(path, name, *args, **kwargs)
        return self._load(path, name, kwargs)

    def _load(self, path: str, name: str | None, kwargs: dict[str, Any]) -> Any:
        from libmoe.eval.mirror.splits import LocalSplits

        if kwargs.get("data_files"):
            files = {
                split: [self._file(f"{path}/{file}") for file in files]
                for split, files in _by_split(kwargs["data_files"]).items()
            }
        else:
            files = find_splits(self.root, path, name or kwargs.get("data_dir"))
        label = f"data set {path}" + (f", {name}" if name else "")
        if not files:
            raise DataError(self._nothing(label, path, name, kwargs.get("split")))
        place = self.root / expected_file(path, name, "{split}")
        missing = f"{label} has no file of split {{split!r}}; expected {place}"
        splits = LocalSplits(files, self.original, missing)
        return splits if kwargs.get("split") is None else _part(splits, str(kwargs["split"]))

    def _nothing(self, label: str, path: str, name: str | None, split: Any) -> str:
        text = f"no files of {label}; expected {self.root / expected_file(path, name, str(split or 'SPLIT'))}"
        base = self.root / path
        if not base.is_dir():
            return text
        there = sorted(item.name for item in base.iterdir() if item.is_dir())
        guess = nearest(name, there) if name else None
        return f"{text}; did you mean {guess!r}?" if guess else text

    def _local(self, data_files: Any) -> Any:
        """Files on the hub as those of the mirror; others stay."""
        if isinstance(data_files, str):
            return self._remote(data_files)
        if isinstance(data_files, dict):
            return {split: self._local(files) for split, files in data_files.items()}
        return [self._local(file) for file in data_files]

    def _remote(self, file: str) -> str:
        if match := _HUB_FILE.fullmatch(file):
            rest = re.sub(r"^(?:@[^/]+)?/(?:resolve/[^/]+/)?", "", match["rest"])
            return str(self._file(f"{match['path']}/{rest}"))
        if "://" in file:
            return str(self._file(file.partition("://")[2]))
        return file

    def _file(self, relative: str) -> Path:
        if not (self.root / relative).is_file():
            raise DataError(f"there is no {self.root / relative}")
        return self.root / relative


def _by_split(data_files: Any) -> dict[str, list[str]]:
    given = data_files if isinstance(data_files, dict) else {"train": data_files}
    return {split: [files] if isinstance(files, str) else list(files) for split, files in given.items()}


def _part(splits: Any, wanted: str) -> Any:
    """One split, or some of its rows (``test[:100]``)."""
    match = _SPLIT.fullmatch(wanted)
    if match is None:
        raise DataError(f"split {wanted!r} is none of the forms NAME and NAME[FROM:TO]")
    data = splits[match["name"]]
    if match["from"] is None:
        return data
    start, stop = int(match["from"] or 0), int(match["to"] or len(data))
    return data.select(range(start, min(stop, len(data))))


@contextlib.contextmanager
def _metrics(root: Path) -> Iterator[None]:
    """``evaluate.load(NAME)`` runs ``evaluate-metric/NAME/NAME.py`` of the mirror."""
    try:
        import evaluate
    except ImportError:
        yield
        return
    original = evaluate.load

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        place = root / (path if "/" in path else f"evaluate-metric/{path}")
        if not (place / f"{place.name}.py").is_file():
            raise DataError(f"no metric {path}; expected {place / f'{place.name}.py'}")
        return original(str(place), *args, **kwargs)

    with mock.patch.object(evaluate, "load", load):
        yield


@contextlib.contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Preparing files is no news: the caller shows its own progress."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
