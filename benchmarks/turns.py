"""Times of several kinds of the same work, in turns, so that drifts of the machine hit all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

WARM_UP = 2
"""Rounds that are not counted."""


def in_turns(kinds: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Runs all kinds in each round, in random order; the first of them is what the others are compared with.

    Returns:
        By kind ``median_ms``, and medians over rounds of how much more than the first it took in the same round:
        ``more`` of time, ``cpu_more`` of the process's processor time, which tells on a busy machine.
    """
    wall: dict[str, list[float]] = {name: [] for name in kinds}
    cpu: dict[str, list[float]] = {name: [] for name in kinds}
    order, first = random.Random(0), next(iter(kinds))
    for number in tqdm(range(rounds + WARM_UP), desc=", ".join(kinds), leave=False):
        for name in order.sample(list(kinds), len(kinds)):
            begun, worked = time.perf_counter(), time.process_time()
            kinds[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= WARM_UP:
                wall[name].append(time.perf_counter() - begun)
                cpu[name].append(time.process_time() - worked)

    def more(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(times[name], times[first])) - 1

    return {
        name: {
            "median_ms": 1000 * statistics.median(wall[name]),
            "more": more(wall, name),
            "cpu_more": more(cpu, name),
        }
        for name in kinds
    }
