"""A model registry in a folder: versions with digests and lineage, stages, a gate before production, and the way back.

<registry>/<name>/v1/entry.json     what version 1 is; never changed
                    lineage/        recipe, provenance, result and evaluation of its run
                    model/          the files of the model, if they were copied
                  history.json      which version was in which stage, and why
                  gate.yaml         what production requires, written by its owner
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.core.errors import CheckpointError, ConfigError, unknown
from libmoe.core.files import digest, hold, read_json, write_atomically, write_json
from libmoe.mlops.history import History, Stage, event
from libmoe.mlops.lineage import RUN_FILES, digests, trace_back

FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
Entry = dict[str, Any]


def default_registry() -> Path:
    """``$LIBMOE_REGISTRY``, or ``runs/registry``."""
    return Path(os.environ.get("LIBMOE_REGISTRY") or Path("runs") / "registry")


class Registry:
    """The registry in ``folder``; made when a model is added."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_registry()

    def add(self, name: str, source: str | Path, *, note: str = "", copy: bool = False) -> Entry:
        """Register the model of a run or model folder as the next version, in stage ``staging``.

        The same weights with the same metrics are not registered twice: their version is returned.

        Args:
            note: a line for people.
            copy: keep the model's files in the registry; else they stay where they are, watched by their digests.

        Raises:
            ConfigError: a name that no folder can have.
            CheckpointError: there is no model.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"name {name!r}: use small letters, digits, '.', '_' and '-'")
        found = trace_back(source)
        home = self.folder / name
        with hold(home):
            known = [self.entry(name, version) for version in self.versions(name)]
            for entry in known:
                if entry["weights"] == found.weights and entry["metrics"] == found.metrics:
                    return entry
            version = max((entry["version"] for entry in known), default=0) + 1
            place = home / f"v{version}"
            _clear(place)
            kept = {}
            for file in RUN_FILES:
                if found.run is not None and file not in found.missing:
                    write_atomically(place / "lineage" / file, (found.run / file).read_bytes())
                    kept[file] = digest(place / "lineage" / file)
            if copy:
                _copy(found.model, place / "model", list(found.files))
            entry = {
                "format": FORMAT,
                "name": name,
                "version": version,
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "note": note,
                **{
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in asdict(found).items()
                },
                "model": None if copy else str(found.model),
                "lineage": kept,
            }
            write_json(place / "entry.json", entry)  # last: with it the version exists
            History(home).add(event(version, "staging", "added"))
        return entry

    def names(self) -> list[str]:
        """Registered models."""
        return sorted({path.parents[1].name for path in self.folder.glob("*/v*/entry.json")})

    def versions(self, name: str) -> list[int]:
        """Versions of a model, oldest first."""
        found = (path.parent.name[1:] for path in (self.folder / name).glob("v*/entry.json"))
        return sorted(int(number) for number in found if number.isdigit())

    def entry(self, name: str, version: int | str | None = None) -> Entry:
        """What is known of a version.

        Args:
            version: a number (``3`` or ``v3``) or the stage it is in; ``None``: the newest.

        Raises:
            ConfigError: no such model or version.
            CheckpointError: its entry is damaged.
        """
        number = self.resolve(name, version)
        file = self.folder / name / f"v{number}" / "entry.json"
        entry = read_json(file)
        if entry is None or entry.get("format") != FORMAT:
            raise CheckpointError(
                f"{file} is damaged or of another version of LibMoE; restore it from a copy"
            )
        return entry

    def resolve(self, name: str, version: int | str | None) -> int:
        """The number of a version.  Raises ConfigError when there is none."""
        versions = self.versions(name)
        if not versions:
            raise unknown("model", name, self.names())
        if version is None:
            return versions[-1]
        stages = self.stages(name)
        if version in ("staging", "production"):
            found = [number for number in versions if stages[number] == version]
            if not found:
                raise ConfigError(f"no version of {name} is in {version}; see: libmoe registry show {name}")
            return found[-1]
        text = str(version).removeprefix("v")
        if not text.isdigit() or int(text) not in versions:
            choices = [*(f"v{number}" for number in versions), "production", "staging"]
            raise unknown(f"version of {name}", version, choices)
        return int(text)

    def stages(self, name: str) -> dict[int, Stage]:
        """The stage of each version."""
        return {number: History(self.folder / name).stage(number) for number in self.versions(name)}

    def model_folder(self, entry: Entry) -> Path:
        """Where the files of a version are."""
        if entry["model"] is not None:
            return Path(entry["model"])
        return self.folder / entry["name"] / f"v{entry['version']}" / "model"

    def run_file(self, entry: Entry, file: str) -> dict[str, Any]:
        """A JSON file of the run, as it was when the version was registered; empty where there was none."""
        return read_json(self.folder / entry["name"] / f"v{entry['version']}" / "lineage" / file) or {}

    def verify(self, name: str, version: int | str | None = None) -> list[str]:
        """Compare a version's files with their digests; a line for each that is gone, changed or new."""
        entry = self.entry(name, version)
        model, lineage = self.model_folder(entry), self.folder / name / f"v{entry['version']}" / "lineage"
        kept = {file: digest(lineage / file) for file in entry["lineage"] if (lineage / file).is_file()}
        return [
            *_differences(model, entry["files"], digests(model) if model.is_dir() else {}),
            *_differences(lineage, entry["lineage"], kept),
        ]


def _differences(folder: Path, then: dict[str, str], found: dict[str, str]) -> list[str]:
    lines = [
        f"{folder / name} {'is gone' if name not in found else 'has changed'}"
        for name, value in then.items()
        if found.get(name) != value
    ]
    return lines + [f"{folder / name} was not there" for name in found if name not in then]


def _clear(place: Path) -> None:
    """What a killed process left: a version without ``entry.json`` does not exist."""
    if place.exists():
        shutil.rmtree(place)


def _copy(model: Path, place: Path, names: list[str]) -> None:
    place.mkdir(parents=True)
    for name in [*names, "README.md"]:
        if (model / name).is_file():
            shutil.copy2(model / name, place / name)
