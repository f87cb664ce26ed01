"""Which local files hold the splits of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

FORMATS: Mapping[str, str] = {
    "jsonl": "json",
    "json": "json",
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
}
"""Endings of data files, each with the loader of ``datasets`` that reads it."""

_ENDING = "|".join(FORMATS)
_FILE = re.compile(rf"(?P<split>\w+(?:\.\w+)*?)(?:-\d{{5}}-of-\d{{5}})?\.(?:{_ENDING})(?:\.gz)?")
_SHARD = re.compile(rf"(?:\d{{4,}}|\w+-\d{{5}}-of-\d{{5}})\.(?:{_ENDING})(?:\.gz)?")
_NO_DATA = {"dataset_infos", "dataset_dict", "state", "config"}


def expected_file(path: str, name: str | None, split: str) -> str:
    """Where a split is looked for first, below the mirror's folder."""
    return "/".join([path, *([name] if name else []), f"{split}.jsonl"])


def find_splits(folder: Path, path: str, name: str | None = None) -> dict[str, list[Path]]:
    """``{split: its files}`` of data set ``path`` in configuration ``name``; empty when nothing is there.

    Two layouts are known: ``PATH/NAME/SPLIT.ENDING`` (without ``NAME`` where a data set has no configurations), and
    a snapshot of the hub as it was downloaded, into ``PATH`` or by the hub's own cache, whose ``README.md`` or folder
    names tell what is where.
    """
    cached = folder / f"datasets--{path.replace('/', '--')}" / "snapshots"
    for base in (folder / path, *(sorted(cached.iterdir(), reverse=True) if cached.is_dir() else ())):
        if base.is_dir():
            if found := _by_card(base, name):
                return found
            for place in _places(base, name):
                if found := _in_folder(place):
                    return found
    return {}


def _places(base: Path, name: str | None) -> Iterable[Path]:
    if name is None or name == "default":
        yield from (base, base / "data", base / "default", base / "data" / "default")
        if name is None:
            # A single configuration need not be named.
            folders = [p for p in sorted(base.iterdir()) if p.is_dir() and not p.name.startswith(".")]
            if len(folders) == 1:
                yield folders[0]
    else:
        yield from (base / name, base / "data" / name, base / name / "data")


def _in_folder(place: Path) -> dict[str, list[Path]]:
    """Files named by their split, or folders named by their split that hold numbered files."""
    found: dict[str, list[Path]] = {}
    if not place.is_dir():
        return found
    for item in sorted(place.iterdir()):
        if item.is_dir():
            shards = [p for p in sorted(item.iterdir()) if _SHARD.fullmatch(p.name)]
            if shards and all(p.stem.isdecimal() for p in shards):
                found[item.name] = shards
        elif (match := _FILE.fullmatch(item.name)) and match["split"] not in _NO_DATA:
            found.setdefault(match["split"], []).append(item)
    return found


def _by_card(base: Path, name: str | None) -> dict[str, list[Path]]:
    """The files that the data set's own card names."""
    for config in _configurations(base / "README.md"):
        if config.get("config_name", "default") == (name or "default") or (
            name is None and config.get("default")
        ):
            return {
                split: files
                for split, patterns in _patterns(config.get("data_files")).items()
                if (
                    files := sorted(
                        {file for pattern in patterns for file in base.glob(pattern) if file.is_file()}
                    )
                )
            }
    return {}


def _configurations(card: Path) -> list[dict[str, Any]]:
    if not card.is_file():
        return []
    match = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [config for config in configs or [] if isinstance(config, dict)]


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """``{split: patterns}`` from any of the forms that a card may use."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    found: dict[str, list[str]] = {}
    for item in data_files or []:
        if isinstance(item, str):
            found.setdefault("train", []).append(item)
        else:
            paths = item.get("path", [])
            found.setdefault(str(item.get("split", "train")), []).extend(
                [paths] if isinstance(paths, str) else paths
            )
    return found
