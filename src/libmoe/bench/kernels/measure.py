"""One case: every implementation checked, its memory taken, and all timed in turns.

An implementation makes many calls in a row, as in use, and has several such turns, in an order that is drawn anew; so
slow drifts of the machine hit all alike.  Calls are not mixed one by one, because implementations would then profit or
suffer from each other: on a CPU, half-precision products share a cache of 1,024 compiled kernels, one for each
number of rows, which one implementation fills for another that needs the same ones or takes away from one that needs
others.  For the same reason each call has another routing.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from libmoe.bench.kernels.accuracy import Judge, compute
from libmoe.bench.kernels.clock import stopwatch
from libmoe.bench.kernels.floors import Ceiling, floor
from libmoe.bench.kernels.implementations import Implementation, Prepared
from libmoe.bench.kernels.problem import Problem
from libmoe.bench.kernels.shapes import Case
from libmoe.ops import AUTO, choose, explain
from libmoe.ops.cpu.memory import POOL
from libmoe.train.memory import PeakMemory

LEAST, MOST, TURNS = 4, 400, 2
"""Calls of each implementation that are timed, and turns in which it makes them."""
WARMING = 0.3
"""Share of a turn that is not timed: what others left in the caches, of data and of compiled kernels, has to go."""

Row = dict[str, Any]


def measure(
    case: Case,
    candidates: Sequence[Implementation],
    ceiling: Ceiling,
    *,
    budget: float = 4.0,
    fresh: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """All ``candidates`` on ``case``.

    Args:
        candidates: implementations that can be used on this machine.
        ceiling: of this machine in the dtype of the case.
        budget: seconds of timing for all of them together.
        fresh: another routing in every round, else always the same.

    Returns:
        The case, its floor, what ``auto`` picks and why, and a row for each implementation: ``status`` is ``ok``,
        ``skipped`` or ``failed``, the latter two with a ``reason``.
    """
    problem = Problem.make(case, fresh=fresh, seed=seed)
    least = floor(case, problem.touched(), ceiling)
    judge = Judge(problem)
    rows: dict[str, Row] = {}
    works: dict[str, Callable[[int], object]] = {}
    for candidate in candidates:
        row = rows[candidate.name] = {"implementation": candidate.name, "kind": candidate.kind}
        reason = candidate.refuses(case)
        if reason is not None:
            row |= {"status": "skipped", "reason": reason}
            continue
        try:
            prepared = candidate.prepare(case, problem.w_in, problem.w_out)
            work = partial(_work, prepared, problem)
            if candidate.kind == "baseline":  # it computes something else
                row["error"] = None
                work(0)
            else:
                row["error"] = judge.error(prepared)
            # The second call: what was compiled or loaded in the first is not its memory.
            row["peak_bytes"] = _peak_bytes(work, case.device)
            works[candidate.name] = work
        except Exception as error:  # whatever a peer raises is a result
            row |= {"status": "failed", "reason": one_line(error)}
    times, failures = time_in_turns(works, stopwatch(case.device), budget, seed)
    for name, failure in failures.items():
        rows[name] |= {"status": "failed", "reason": one_line(failure)}
    for name, seconds in times.items():
        rows[name] |= {"status": "ok", **summary(seconds)}
    compare(list(rows.values()), least.seconds)
    return {
        "shape": asdict(case.shape),
        "pass": case.step,
        "dtype": case.dtype,
        "routing": case.routing,
        "device": case.device,
        "touched_experts": problem.touched(),
        "compared_tokens": judge.tokens,
        "floor": {**asdict(least), "intensity": least.intensity},
        "auto": explained(case),
        "rows": list(rows.values()),
    }


def time_in_turns(
    works: dict[str, Callable[[int], object]],
    timed: Callable[[Callable[[], object]], float],
    budget: float,
    seed: int = 0,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds of calls ``work(number)``, and what the works that raised have raised."""
    order = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in works}
    failures: dict[str, Exception] = {}
    numbers = dict.fromkeys(works, 0)
    share = budget / max(len(works), 1) / TURNS
    for turn in range(TURNS):
        going = list(times)
        order.shuffle(going)
        for name in going:
            wanted = -(-LEAST * (turn + 1) // TURNS)
            spent = 0.0
            try:
                while spent < share or len(times[name]) < wanted:
                    seconds = timed(partial(works[name], numbers[name]))
                    numbers[name] += 1
                    # A call that takes longer than the whole turn has nothing left to warm.
                    if spent >= WARMING * share or seconds > share:
                        times[name].append(seconds)
                    spent += seconds
                    if len(times[name]) >= MOST * (turn + 1) // TURNS:
                        break
            except Exception as error:
                failures[name] = error
                del times[name]
    return times, failures


def summary(seconds: Sequence[float]) -> Row:
    """Median, least and interquartile range in milliseconds, and every single time."""
    ms = [1e3 * s for s in seconds]
    first, _, third = statistics.quantiles(ms, n=4, method="inclusive")
    return {"ms": statistics.median(ms), "min_ms": min(ms), "iqr_ms": third - first, "repeats_ms": ms}


def compare(rows: Sequence[Row], floor_seconds: float) -> None:
    """Put ``eta``, the share of the roofline and the ratio to the best peer into the rows that were timed.

    ``eta`` is the time of the dense FFN of equal FLOPs over the time of the row; ``speedup`` is the time of the
    fastest peer over it, so above 1 the row is faster than every peer.
    """
    timed = [row for row in rows if row["status"] == "ok"]
    dense = next((row["ms"] for row in timed if row["kind"] == "baseline"), None)
    best = min((row["ms"] for row in timed if row["kind"] == "peer"), default=None)
    for row in timed:
        row["eta"] = dense / row["ms"] if dense else None
        row["roofline"] = 1e3 * floor_seconds / row["ms"]
        row["speedup"] = best / row["ms"] if best and row["kind"] != "baseline" else None


def explained(case: Case) -> dict[str, Any]:
    """Which backend ``auto`` picks, and for each backend the estimate that ranks it or the reason why it cannot."""
    picked = choose(case.task, AUTO).name
    choices = []
    for choice in explain(case.task):
        if choice.ok:  # what its verification found is a matter of the machine, not of the choice
            best = choice.name == picked
            choice = replace(
                choice, reason="picked by its estimate" if best else "its estimate is not the lowest"
            )
        choices.append(asdict(choice))
    return {"picked": picked, "choices": choices}


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _work(prepared: Prepared, problem: Problem, number: int) -> None:
    """The timed call; giving the results back to the allocator is part of it, as in a training loop."""
    compute(prepared, problem, problem.routings[number % len(problem.routings)])


def _peak_bytes(work: Callable[[int], object], device: str) -> int:
    """Memory of one call beyond its inputs and weights: the output, what the backward keeps, gradients, scratch."""
    POOL.release()  # else blocks kept from the call before would not count
    peak = PeakMemory(torch.device(device))
    work(0)
    return peak.bytes()
