"""Progress on a terminal as a bar, elsewhere as a plain line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

PLAIN_SECONDS = 30.0
"""Time between two plain lines when the output is not a terminal."""


class Progress:
    """Shows one run: loss, tokens per second, time left, worst load imbalance.

    Several runs may show theirs at once: tqdm gives each bar of a process its own line.

    Args:
        name: of the run; ``start`` and ``steps`` say where it begins and ends.
        quiet: show nothing, messages included.
    """

    def __init__(self, name: str, start: int, steps: int, quiet: bool) -> None:
        self.name, self.start, self.steps, self.quiet = name, start, steps, quiet
        self._begun = self._spoken = time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(
                desc=name, total=steps, initial=start, unit="step", dynamic_ncols=True, leave=True
            )

    def update(self, step: int, record: Mapping[str, Any], tokens_per_second: float) -> None:
        """``step`` steps are done; ``record`` is the line that went to ``metrics.jsonl``."""
        if self._bar is not None:
            self._bar.set_postfix_str(describe(record, tokens_per_second), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self.quiet or (now - self._spoken < PLAIN_SECONDS and step < self.steps):
            return
        self._spoken = now
        left = (now - self._begun) / max(step - self.start, 1) * (self.steps - step)
        what = describe(record, tokens_per_second)
        self.say(f"{self.name}: step {step}/{self.steps}, {what}, {duration(left)} left")

    def say(self, line: str) -> None:
        """Print a message without tearing the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def describe(record: Mapping[str, Any], tokens_per_second: float) -> str:
    """Loss, speed, and the worst layer's balance: what a line has room for."""
    parts = [f"loss {record['loss']:.3f}", f"{tokens_per_second:,.0f} tokens/s"]
    layers = list(record.get("balance", {}).values())
    if layers:
        parts.append(f"max violation {max(layer['max_violation'] for layer in layers):.2f}")
        parts.append(f"load entropy {min(evenness(layer) for layer in layers):.2f}")
        if dead := sum(layer["dead"] for layer in layers):
            parts.append(f"{dead} dead")
        if margins := [layer["margin"] for layer in layers if "margin" in layer]:
            parts.append(f"margin {sum(margins) / len(margins):.2f}")
    return ", ".join(parts)


def evenness(layer: Mapping[str, Any]) -> float:
    """Entropy of a layer's load over ln N: 1 is even."""
    return float(layer["entropy"] / math.log(len(layer["load"]))) if len(layer["load"]) > 1 else 1.0


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
