"""The cells of one command on a Ray cluster: sent, heard of, sent anew when lost, and brought home."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import libmoe
from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.executors.ray_worker import Outcome, Request
from libmoe.bench.executors.transfer import pack, unpack
from libmoe.bench.pool import ATTEMPTS, PATIENCE, lost_row
from libmoe.core.errors import CheckpointError, LibMoEError
from libmoe.core.plugins import describe


class Work:
    """The cells of one command on the cluster: which wait, which are there, what they have said.

    Args:
        ray: the module, connected.
        task: :func:`~libmoe.bench.executors.ray_worker.attend` as a remote function.
        board: a remote :class:`~libmoe.bench.executors.ray_worker.Board`.
        mark: a file in the folder of the grid.

    Attributes:
        news: newest metrics by run folder.
    """

    def __init__(self, ray: Any, task: Any, board: Any, specs: Sequence[CellSpec], mark: Path) -> None:
        self.ray, self.task, self.board = ray, task, board
        self.specs = list(specs)
        self.news: dict[str, dict[str, Any]] = {}
        self.waiting = deque(self._request(number, mark) for number in range(len(specs)))
        self.running: dict[Any, Request] = {}
        self.begun: set[int] = set()
        self.lost = Counter[int]()

    def _request(self, number: int, mark: Path) -> Request:
        spec = self.specs[number]
        run_dir = Path(spec.run_dir).absolute()
        plugins = {path: Path(path).read_bytes() for path in spec.plugins}
        return Request(
            number=number,
            cell=replace(spec, run_dir=str(run_dir)).to_json(),
            cwd=os.getcwd(),
            mark=str(mark),
            version=libmoe.__version__,
            plugins=plugins,
            resumes=run_dir.exists(),
        )

    def submit(self) -> None:
        while self.waiting:
            request = self.waiting.popleft()
            self.running[self.task.remote(request, self.board)] = request

    def hear(self) -> list[CellSpec]:
        """Read the board; returns the cells that have begun since the last time."""
        news = self.ray.get(self.board.read.remote())
        for number, metrics in news.items():
            self.news[self.specs[number].run_dir] = metrics
        new = [number for number in news if number not in self.begun]
        self.begun.update(new)
        return [self.specs[number] for number in new]

    def collect(self, timeout: float = 0.5) -> list[tuple[CellSpec, dict[str, Any]]]:
        """Wait for tasks that have ended; returns the rows of the cells that are over."""
        done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=timeout)
        pairs = []
        for reference in done:
            request = self.running.pop(reference)
            spec = self.specs[request.number]
            row = self._judge(request, spec, self._outcome(reference))
            if row is not None:
                pairs.append((spec, row))
        return pairs

    def _outcome(self, reference: Any) -> Outcome:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:  # the supervisor itself failed, and would again
            return Outcome(refusal=describe(error.cause)[:500])
        except errors.RayError as error:
            return Outcome(ending=f"was lost ({type(error).__name__})")

    def _judge(self, request: Request, spec: CellSpec, outcome: Outcome) -> dict[str, Any] | None:
        """The row of a cell that is over; else it is put among those that wait."""
        run_dir = Path(spec.run_dir)
        if outcome.files is not None:
            unpack(outcome.files, run_dir)
        if outcome.row is not None:
            return outcome.row
        if outcome.refusal:
            return failed_row(spec, f"a machine of the cluster could not run it: {outcome.refusal}")
        if not outcome.wants_files:
            self.lost[request.number] += 1
            if self.lost[request.number] >= ATTEMPTS:
                return lost_row(spec, f"its process {outcome.ending}", run_dir / "worker.log")
        sent = outcome.wants_files or request.files is not None or outcome.files is not None
        try:
            files = pack(run_dir) if sent else None
        except CheckpointError as error:
            return failed_row(spec, str(error))
        self.waiting.append(replace(request, resumes=run_dir.exists(), files=files))
        self.begun.discard(request.number)
        return None

    def stop(self) -> None:
        """Let cells at work save, and bring home what those have reached that work in folders of their own."""
        self.ray.get(self.board.stop.remote())
        self.hear()
        for reference, request in self.running.items():
            if request.number not in self.begun:
                self.ray.cancel(reference)
        limit = time.monotonic() + PATIENCE + 5
        with contextlib.suppress(LibMoEError):
            while self.running and time.monotonic() < limit:
                self.collect()
                self.waiting.clear()
