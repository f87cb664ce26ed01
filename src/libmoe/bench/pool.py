"""Cells on worker processes, each cell apart from the others."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from libmoe.bench.cell import OUT_OF_MEMORY, CellSpec, failed_row
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold, write_json

ATTEMPTS = 2
"""A cell whose process dies goes on from its checkpoint once; then it counts as failed."""
PATIENCE = 60.0
"""Seconds that running cells get to save a checkpoint when the grid is interrupted."""
LOCK = ".cell"
"""Locked in its run folder by whoever sees to a cell, from its first attempt to its row; training has another lock."""


class Worker:
    """One process; answers arrive in ``events`` as ``(worker, row)``, and ``(worker, None)`` when it has ended."""

    def __init__(
        self, log: Path, threads: int, events: SimpleQueue[tuple[Worker, Any]], cwd: Path | None = None
    ) -> None:
        self.log, self.idle = log, True
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "libmoe.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment(threads),
                cwd=cwd,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its workers in order
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: SimpleQueue[tuple[Worker, Any]]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed as it wrote
            for line in self.process.stdout:
                self.idle = True
                events.put((self, json.loads(line)))
        self.process.wait()
        events.put((self, None))

    def submit(self, spec: CellSpec) -> None:
        assert self.process.stdin is not None
        self.idle = False
        with contextlib.suppress(BrokenPipeError):  # that it has ended is an event of its own
            self.process.stdin.write(spec.to_json() + "\n")
            self.process.stdin.flush()

    def ending(self) -> str:
        """How the process ended, in words."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"was killed ({signal.Signals(-code).name})"
        if code == OUT_OF_MEMORY:
            return "ran out of memory"
        return f"ended with exit code {code}"

    def close(self) -> None:
        """Let an idle process end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def run_pool(
    specs: Sequence[CellSpec],
    count: int,
    folder: Path,
    *,
    started: Callable[[CellSpec], None],
    finished: Callable[[CellSpec, dict[str, Any]], None],
    tick: Callable[[], None],
) -> None:
    """Run every cell, ``count`` at once; what workers print goes to ``folder/worker-*.log``.

    A cell that another process sees to counts as failed here, and nothing is written to its folder.
    Interrupted, it lets the running cells finish their step and save; interrupted again, it ends them at once.
    """
    waiting, attempts = deque(specs), Counter[str]()
    events: SimpleQueue[tuple[Worker, Any]] = SimpleQueue()
    busy: dict[Worker, CellSpec] = {}
    idle: list[Worker] = []
    numbers = itertools.count()
    held: dict[str, contextlib.ExitStack] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                spec = waiting.popleft()
                if spec.run_dir not in held:
                    try:
                        held[spec.run_dir] = _hold(spec)
                    except ConfigError as error:
                        finished(spec, failed_row(spec, str(error)))
                        continue
                worker = (
                    idle.pop()
                    if idle
                    else Worker(folder / f"worker-{next(numbers)}.log", spec.threads, events)
                )
                worker.submit(spec)
                busy[worker] = spec
                started(spec)
            tick()
            try:
                worker, row = events.get(timeout=0.5)
            except Empty:
                continue
            if worker not in busy:
                idle.remove(worker)  # it ended with nothing to do
                continue
            spec = busy.pop(worker)
            if row is not None:
                idle.append(worker)
            else:
                attempts[spec.run_dir] += 1
                if attempts[spec.run_dir] < ATTEMPTS:
                    waiting.appendleft(spec)
                    continue
                row = lost_row(spec, f"its process {worker.ending()}", worker.log)
            held.pop(spec.run_dir).close()
            finished(spec, row)
        for worker in idle:
            worker.close()
    finally:
        end([*busy, *idle])
        for lock in held.values():
            lock.close()
    tick()


def _hold(spec: CellSpec) -> contextlib.ExitStack:
    """The cell, held until this is closed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(spec.run_dir, LOCK))
        return stack.pop_all()


def lost_row(spec: CellSpec, what: str, log: Path | str) -> dict[str, Any]:
    """The row of a cell that was lost with its process :data:`ATTEMPTS` times; it is left in the run folder too."""
    row = failed_row(
        spec, f"{what}, twice; if memory ran out, lower the batch size or the workers (details: {log})"
    )
    write_json(spec.row_file, row)
    return row


def end(workers: Sequence[Worker]) -> None:
    """Let workers finish their step and save; those that take longer than :data:`PATIENCE` are killed."""
    alive = [w for w in workers if w.process.poll() is None]
    limit = time.monotonic() + PATIENCE
    try:
        for worker in alive:
            worker.process.terminate()  # training saves a checkpoint on this signal
        while time.monotonic() < limit and any(w.process.poll() is None and not w.idle for w in alive):
            # One that hears of it in its last step answers as usual, and then waits for more.
            time.sleep(0.05)
    finally:
        for worker in alive:
            worker.process.kill()
            worker.process.wait()


def environment(threads: int) -> dict[str, str]:
    """What workers inherit: this process's import path, their share of the cores, and no progress bars."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
    quiet = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), **quiet}
