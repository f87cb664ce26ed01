"""Scene graphs from files.  The recordings themselves are given to those who sign for them, and are not here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError, nearest
from libmoe.eval.scene_graph.labels import ENTITIES, PREDICATES
from libmoe.eval.scene_graph.triplets import Triplet


@dataclass(frozen=True)
class Frame:
    """The scene graph of one timepoint of one recording (take)."""

    take: str
    timepoint: int
    graph: list[Triplet]

    @property
    def data_set(self) -> str:
        """``4D-OR`` or ``MM-OR``, which the take's name tells; scores are reported for each apart."""
        return "4D-OR" if self.take.endswith("_4DOR") else "MM-OR"


def load_frames(path: str | Path) -> list[Frame]:
    """Read scene graphs, by take and timepoint.

    Layout: a folder with ``TAKE/TIMEPOINT.json`` (the timepoint in digits, such as ``000012.json``), each an object
    with ``relationships``, a list of ``[subject, object, predicate]``.  A single file with a list of such objects,
    which then have ``take_name`` and ``frame_id`` too, is read as well.

    Raises:
        DataError: nothing is there, a file is malformed, or a label is unknown; the line names the file.
    """
    path = Path(path).expanduser()
    if path.is_file():
        frames = [
            _frame(record, f"record {number} of {path}", None, None)
            for number, record in enumerate(_parse(path, list))
        ]
    else:
        files = sorted(path.glob("*/*.json"))
        frames = [_frame(_parse(file, dict), str(file), file.parent.name, file.stem) for file in files]
    if not frames:
        raise DataError(f"no scene graphs in {path}; they are expected as TAKE/TIMEPOINT.json")
    return sorted(frames, key=lambda frame: (frame.take, frame.timepoint))


def _parse(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, kind):
        raise DataError(f"{file} holds no {'list of objects' if kind is list else 'object'}")
    return content


def _frame(record: Any, where: str, take: str | None, timepoint: str | None) -> Frame:
    try:
        graph = [
            Triplet(subject, predicate, object) for subject, object, predicate in record["relationships"]
        ]
        take = str(record["take_name"]) if take is None else take
        number = int(record["frame_id"] if timepoint is None else timepoint)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} is no scene graph ({type(error).__name__}: {error})") from None
    for triplet in graph:
        _known("entity", triplet.subject, ENTITIES, where)
        _known("entity", triplet.object, ENTITIES, where)
        _known("predicate", triplet.predicate, PREDICATES, where)
    return Frame(take, number, graph)


def _known(what: str, name: str, labels: tuple[str, ...], where: str) -> None:
    if name not in labels:
        guess = nearest(name, labels)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise DataError(f"{where} has the unknown {what} {name!r}{hint}")
