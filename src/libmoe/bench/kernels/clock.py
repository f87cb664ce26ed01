"""Time of one call, on the device that does the work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CACHE_BYTES = 1 << 28
"""More than the L2 cache of any GPU."""


def stopwatch(device: str) -> Callable[[Callable[[], object]], float]:
    """A function that calls what it is given and returns the seconds.

    On a GPU the time is between two events of the stream, and the L2 cache is overwritten before the first.
    """
    if device != "cuda":
        return _wall_clock
    flush = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device=device)

    def on_stream(work: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    return on_stream


def _wall_clock(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
