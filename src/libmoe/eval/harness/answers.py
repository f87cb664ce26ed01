"""The model's answers of one slice, on disk as soon as a batch is computed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Answers:
    """An append-only file with one line per batch; a line that was cut short by a kill is dropped when read.

    Answers come back batch by batch, never a part of one: the requests that are left after a kill are batched as they
    would have been, so that a resumed run gives the same bits.  The same request asked several times (repeats of
    sampling, equal documents) has as many answers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._known: dict[str, list[Any]] = {}
        self._batch: list[tuple[str, Any]] = []
        whole = 0
        if path.is_file():
            with open(path, "rb") as file:
                for line in file:
                    try:
                        batch = json.loads(line) if line.endswith(b"\n") else None
                    except ValueError:
                        batch = None
                    if batch is None:
                        break
                    whole += len(line)
                    self._learn(batch)
            if whole < path.stat().st_size:
                os.truncate(path, whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115, closed by close()

    def add(self, kind: str, request: Iterable[Any], answer: Any) -> None:
        """An answer of the batch that is being computed."""
        self._batch.append((key(kind, request), answer))

    def commit(self) -> None:
        """The batch is complete: write it."""
        if self._batch:
            self._file.write(json.dumps(self._batch, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            self._learn(self._batch)
            self._batch = []

    def forget_batch(self) -> None:
        """The batch failed: what it answered is asked again."""
        self._batch = []

    def missing(self, kind: str, requests: list[Any]) -> list[Any]:
        """Those of ``requests`` (the harness's instances) that have no answer yet, in their order."""
        left = {k: len(v) for k, v in self._known.items()}
        asked = []
        for request in requests:
            name = key(kind, request.args)
            if left.get(name, 0):
                left[name] -= 1
            else:
                asked.append(request)
        return asked

    def take(self, kind: str, requests: list[Any]) -> list[Any]:
        """The answer to each of ``requests``."""
        used: dict[str, int] = {}
        found = []
        for request in requests:
            name = key(kind, request.args)
            found.append(self._known[name][used.get(name, 0)])
            used[name] = used.get(name, 0) + 1
        return found

    def close(self, delete: bool = False) -> None:
        self._file.close()
        if delete:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _learn(self, batch: Iterable[Any]) -> None:
        for name, answer in batch:
            self.count += 1
            self._known.setdefault(name, []).append(tuple(answer) if isinstance(answer, list) else answer)


def key(kind: str, request: Iterable[Any]) -> str:
    text = json.dumps([kind, list(request)], ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
