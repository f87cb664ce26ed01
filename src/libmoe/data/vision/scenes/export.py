"""Conversations as files that other trainers of vision-language models read."""

from __future__ import annotations

import io
from pathlib import Path

from libmoe.core.files import write_atomically, write_json
from libmoe.data.vision.rows import Conversations

NAME = "conversations.json"


def export(conversations: Conversations, folder: str | Path, number: int | None = None) -> Path:
    """Write rows in LLaVA's format: a JSON list beside a folder ``images`` of PNG files.

    A row is ``{"id", "task", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}``.
    The list is written last, so that it names no image that is missing.

    Args:
        number: of rows, from the first; all by default.

    Returns:
        The JSON file.
    """
    folder = Path(folder)
    rows = []
    for place in range(len(conversations) if number is None else min(number, len(conversations))):
        row = conversations.row(place)
        entry: dict[str, object] = {"id": row.name, "task": row.task}
        if row.image is not None:
            entry["image"] = f"images/{row.name}.png"
            buffer = io.BytesIO()
            row.image().save(buffer, "PNG")
            write_atomically(folder / f"images/{row.name}.png", buffer.getvalue())
        entry["conversations"] = [
            {"from": speaker, "value": text}
            for turn in row.turns
            for speaker, text in (("human", turn.question), ("gpt", turn.answer))
        ]
        rows.append(entry)
    write_json(folder / NAME, rows)
    return folder / NAME
