"""Which version of a model was in which stage, and why: a list of events that only grows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from libmoe.core.errors import CheckpointError
from libmoe.core.files import read_json, write_json

Stage = Literal["staging", "production", "archived"]
STAGES: tuple[Stage, ...] = get_args(Stage)
SUPERSEDED = "superseded"
"""Why a version leaves production for a better one; it stays one to go back to."""


def event(
    version: int, stage: Stage | None, why: str, gate: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What happened to a version; ``stage`` is ``None`` where it stayed where it was."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"when": when, "version": version, "stage": stage, "why": why, "gate": gate}


class History:
    """The events in ``history.json`` of a registered model's folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "history.json"

    def events(self) -> list[dict[str, Any]]:
        """Oldest first: ``when``, ``version``, ``stage`` (``None``: a promotion that was refused), ``why``, ``gate``.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.file.is_file():
            return []
        events = (read_json(self.file) or {}).get("events")
        if not isinstance(events, list):
            raise CheckpointError(f"{self.file} is damaged; restore it from a copy")
        return events

    def add(self, *events: dict[str, Any]) -> None:
        """Add events, all at once or not at all; the caller holds the folder."""
        write_json(self.file, {"events": [*self.events(), *events]})

    def stage(self, version: int) -> Stage:
        """Where a version is; one that was killed while it was added counts as being in staging."""
        found = (event["stage"] for event in reversed(self.events()) if event["version"] == version)
        return next((stage for stage in found if stage is not None), "staging")

    def production(self) -> list[int]:
        """Versions that rollback goes through: the last is in production, those before are what to go back to.

        One that was taken out of production, by rollback or by archiving it, is no longer among them.
        """
        stack: list[int] = []
        current: int | None = None
        for event in self.events():
            version, stage = event["version"], event["stage"]
            if stage == "production":
                stack = [each for each in stack if each != version] + [version]
                current = version
            elif stage is not None and version == current and event["why"] != SUPERSEDED:
                stack.remove(version)
                current = None
        return stack
