"""Where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class RunState:
    """The plain numbers of a checkpoint.

    ``loss`` is that of the last step; ``seconds`` the training time of all sessions; ``best_step`` and
    ``best_value`` the saved checkpoint with the lowest evaluation; ``metrics_bytes`` and ``timing_bytes`` the
    length of the logs.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    metrics_bytes: int = 0
    timing_bytes: int = 0

    def note_evaluation(self, measured: Mapping[str, Any]) -> None:
        """Remember the step if it is the best so far by ``bits_per_byte`` or, without it, ``loss``."""
        value = measured.get("bits_per_byte", measured.get("loss"))
        if value is not None and (self.best_value is None or value < self.best_value):
            self.best_step, self.best_value = self.step, float(value)
