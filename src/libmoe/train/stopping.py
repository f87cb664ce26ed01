"""Ctrl-C and termination: finish the step, save, leave; a second signal leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(SystemExit):
    """Training stopped on a signal after saving; exits with 128 + signal number (130 for Ctrl-C)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopOnSignal:
    """While the ``with`` block runs, the first SIGINT or SIGTERM only sets ``signal``.

    Handlers belong to the main thread; elsewhere nothing is changed and signals act as usual.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __exit__(self, *exception: object) -> None:
        self._restore()
