"""One model at several steps of its training, as traces of the same text."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.counts import Counts, count
from libmoe.analysis.metrics.change import Change, compare
from libmoe.analysis.trace import Trace
from libmoe.core.errors import DataError

Changes = dict[int, Change]
"""By MoE layer."""


class Series:
    """Traces of one model on the same tokens, oldest first; what is computed from them is kept.

    Attributes:
        steps: optimiser steps, increasing.
        traces: one for each.

    Raises:
        DataError: no traces, not one for each step, or steps that do not increase.
    """

    def __init__(self, steps: Sequence[int], traces: Sequence[Trace]) -> None:
        self.steps, self.traces = [int(step) for step in steps], list(traces)
        if not self.steps or len(self.steps) != len(self.traces):
            raise DataError(f"{len(self.traces)} traces do not fit {len(self.steps)} steps")
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:])):
            raise DataError(f"steps {self.steps} do not increase; give checkpoints oldest first, each once")
        self._changes: dict[tuple[int, int], Changes] = {}
        self._counts: dict[tuple[int, tuple[str, ...]], Counts] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def share(self, place: int) -> float:
        """How much of the last step the checkpoint has seen, in (0, 1]; with batches of one size, of the data."""
        return self.steps[place] / self.steps[-1]

    def change(self, before: int, after: int) -> Changes:
        """How routing differs between two of the checkpoints, given by their places.

        Raises:
            DataError: the traces are not of the same tokens.
        """
        if (before, after) not in self._changes:
            self._changes[before, after] = compare(self.traces[before], self.traces[after])
        return self._changes[before, after]

    def successive(self) -> list[Changes]:
        """From each checkpoint to the next, one fewer than there are checkpoints."""
        return [self.change(place, place + 1) for place in range(len(self) - 1)]

    def against_last(self) -> list[Changes]:
        """From each checkpoint to the last, the last included (which equals itself)."""
        return [self.change(place, len(self) - 1) for place in range(len(self))]

    def counts(self, place: int = -1, by: Sequence[str] = ()) -> Counts:
        """What one pass over a checkpoint's trace adds up, see :func:`libmoe.analysis.counts.count`."""
        key = place % len(self), tuple(by)
        if key not in self._counts:
            self._counts[key] = count(self.traces[place], by)
        return self._counts[key]
