"""What runs on the machines of a Ray cluster: the supervisor of one cell, and the board between it and the command.

The cell itself is an ordinary worker process, the same as in the local pool: it dies alone, it saves when it is
told to end, and its numbers are those of a local run.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import libmoe
from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.transfer import pack, unpack
from libmoe.bench.live import last_metrics
from libmoe.bench.pool import LOCK, Worker, end
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold, write_json
from libmoe.train.provenance import move_plugins

BEAT = 0.5
"""Seconds between two looks at the board."""
RELEASE = 10.0
"""Seconds that an attempt that was lost gets to leave the run folder."""


@dataclass(frozen=True)
class Request:
    """A cell as it is sent to a cluster.

    Attributes:
        number: its place among the cells of the command.
        cell: the cell, as JSON; paths are those of the command's machine.
        cwd: working folder of the command, used where it exists.
        mark: a file that only machines with a view of the command's folder see.
        version: of the library; another one could give other numbers.
        plugins: content of the plugin files by path.
        resumes: the command's machine has files of the cell; ``files`` holds them if they were asked for.
    """

    number: int
    cell: str
    cwd: str
    mark: str
    version: str
    plugins: Mapping[str, bytes]
    resumes: bool = False
    files: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it: a row, or in words how the process ended, or what is missing.

    Attributes:
        files: the run folder, if the command's machine does not see it.
        wants_files: nothing was done yet, because the files of the cell are needed first.
        refusal: this machine cannot run cells of this command.
    """

    row: dict[str, Any] | None = None
    ending: str = ""
    files: Mapping[str, bytes] | None = None
    wants_files: bool = False
    refusal: str = ""


class Board:
    """Between the command and its cells: newest metrics one way, the wish to stop the other way."""

    def __init__(self) -> None:
        self.news: dict[int, dict[str, Any]] = {}
        self.stopping = False

    def beat(self, number: int, metrics: dict[str, Any]) -> bool:
        """A cell reports; returns whether it shall save and leave."""
        self.news[number] = metrics
        return self.stopping

    def read(self) -> dict[int, dict[str, Any]]:
        """Metrics by number of the cell, since the last reading."""
        news, self.news = self.news, {}
        return news

    def stop(self) -> None:
        self.stopping = True


def attend(request: Request, board: Any) -> Outcome:
    """Run one cell in a process of its own; on a machine that does not see its folder, in a temporary one."""
    if request.version != libmoe.__version__:
        return Outcome(refusal=f"it has libmoe {libmoe.__version__}, the command has {request.version}")
    shared = Path(request.mark).exists()
    if not shared and request.resumes and request.files is None:
        return Outcome(wants_files=True)
    spec = CellSpec.from_json(request.cell)
    if shared:
        return _attend(spec, request, board)
    with _elsewhere(spec, request) as moved:
        outcome = _attend(moved, request, board)
        row = outcome.row
        if row is not None and row["status"] != "ok":
            row["error"] = row["error"].replace(moved.run_dir, spec.run_dir)  # where its files will be
            write_json(moved.row_file, row)
        run_dir = Path(moved.run_dir)
        move_plugins(run_dir, dict(zip(moved.plugins, spec.plugins, strict=True)))
        return replace(outcome, files=pack(run_dir, row is not None and row["status"] == "ok"))


@contextlib.contextmanager
def _elsewhere(spec: CellSpec, request: Request) -> Iterator[CellSpec]:
    """The cell in a temporary folder, with its plugins and what it had reached."""
    place = Path(tempfile.mkdtemp(prefix="libmoe-cell-"))
    try:
        run_dir, plugins = place / Path(spec.run_dir).name, []
        unpack(request.files or {}, run_dir)
        for i, path in enumerate(spec.plugins):
            plugins.append(place / f"plugin-{i}" / Path(path).name)
            plugins[-1].parent.mkdir()
            plugins[-1].write_bytes(request.plugins[path])
        yield replace(spec, run_dir=str(run_dir), plugins=tuple(map(str, plugins)))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _attend(spec: CellSpec, request: Request, board: Any) -> Outcome:
    run_dir = Path(spec.run_dir)
    with _taken(run_dir):
        return _see_to(spec, run_dir, request, board)


def _see_to(spec: CellSpec, run_dir: Path, request: Request, board: Any) -> Outcome:
    events: SimpleQueue[tuple[Worker, Any]] = SimpleQueue()
    cwd = Path(request.cwd)
    worker = Worker(run_dir / "worker.log", spec.threads, events, cwd if cwd.is_dir() else None)
    try:
        worker.submit(spec)
        # Never blocking on an answer: Ray gives the cores of a task that waits for an object to another one.
        answer = board.beat.remote(request.number, {}).future()
        while True:
            with contextlib.suppress(Empty):
                _, row = events.get(timeout=BEAT)
                return Outcome(row=row, ending=worker.ending() if row is None else "")
            if answer.done():
                if answer.result():
                    break
                answer = board.beat.remote(request.number, last_metrics(run_dir)).future()
    finally:
        end([worker])
    return Outcome(ending="was told to stop")


@contextlib.contextmanager
def _taken(run_dir: Path) -> Iterator[None]:
    """Hold the cell; the process of a lost attempt, which ends when its supervisor does, may leave the folder first.

    Raises:
        ConfigError: another process holds it, and goes on.
    """
    limit = time.monotonic() + RELEASE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(run_dir, LOCK))
                with hold(run_dir):
                    break
            except ConfigError:
                stack.close()
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)
        yield
