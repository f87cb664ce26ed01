"""A worker process of a grid: reads cells as lines of JSON, runs them, and answers each with its row.

It is an ordinary process rather than a member of Python's pools: a cell that dies takes no other with it, nothing
is pickled, and it works from scripts and notebooks without a ``__main__`` guard.

``python -m libmoe.bench.worker --cell FILE INDEX`` runs one line of a file of cells and ends: the task of a job array.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from libmoe.bench.cell import OUT_OF_MEMORY, CellSpec, finished_row, run_cell
from libmoe.bench.pool import run_pool
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import to_json
from libmoe.core.memory import out_of_memory


def main(arguments: list[str]) -> int:
    if not arguments:
        serve()
    if len(arguments) != 3 or arguments[0] != "--cell":
        print("usage: python -m libmoe.bench.worker [--cell FILE INDEX]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return run_alone(Path(arguments[1]), arguments[2])
    except LibMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def serve() -> None:
    """Serve until the parent is gone; what cells print goes to standard error, which is the worker's log."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        while True:
            spec = CellSpec.from_json(requests.get())
            print(f"--- {spec.name}", file=sys.stderr, flush=True)
            answers.write(to_json(run_cell(spec)) + "\n")
            answers.flush()
    except SystemExit as stop:  # training has saved and leaves; the thread that listens cannot be waited for
        os._exit(int(stop.code or 0))
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(OUT_OF_MEMORY if out_of_memory(error) else 1)


def _listen(requests: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    # The parent has ended, perhaps by kill -9.  Leaving at once gives up the run folder to the next command, which
    # resumes from the last checkpoint; files are written whole or not at all.
    os._exit(0)


def run_alone(cells: Path, index: str) -> int:
    """Run line ``index`` of a file of cells in a process of its own, once more if that is killed.

    Returns:
        0 when the cell is done, also when it was before; 1 when it has failed, or another process is at work on it.

    Raises:
        ConfigError: no such file or line.
    """
    try:
        lines = cells.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{cells} cannot be read ({error.strerror}); write it anew with --slurm") from None
    if not index.isdecimal() or int(index) >= len(lines):
        raise ConfigError(f"{cells} has no cell {index}; choose 0 to {len(lines) - 1}")
    spec = CellSpec.from_json(lines[int(index)])
    if finished_row(spec) is not None:
        print(f"{spec.name} is done already")
        return 0
    rows: list[dict[str, Any]] = []

    def finished(spec: CellSpec, row: dict[str, Any]) -> None:
        rows.append(row)

    run_pool([spec], 1, Path(spec.run_dir), started=lambda spec: None, finished=finished, tick=lambda: None)
    (row,) = rows
    if row["status"] != "ok":
        print(f"{spec.name} failed: {row['error']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
