"""A worker process of a grid: reads cells as lines of JSON, runs them, and answers each with its row.

It is an ordinary process rather than a member of Python's pools: a cell that dies takes no other with it, nothing
is pickled, and it works from scripts and notebooks without a ``__main__`` guard.
"""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue

from libmoe.bench.cell import CellSpec, run_cell
from libmoe.core.files import to_json


def main() -> None:
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


def _listen(requests: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    # The parent has ended, perhaps by kill -9.  Leaving at once gives up the run folder to the next command, which
    # resumes from the last checkpoint; files are written whole or not at all.
    os._exit(0)


if __name__ == "__main__":
    main()
