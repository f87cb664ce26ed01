"""What the last checkpoint loses against the best one, in bits per byte, by domain and by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from libmoe.analysis.studies.runs import Run, bits_per_byte, seeds
from libmoe.analysis.studies.words import listing, number, seen, told


class Lost(NamedTuple):
    """``loss``: by how much the last checkpoint is worse than the best; 0 where it is the best itself."""

    label: str
    seed: int
    best: int
    last: int
    loss: float


Measure = Callable[[Run], Mapping[int, float]]
"""Scores by step."""


def named(run: Run, kind: str, name: str) -> dict[int, float]:
    """Scores of a domain or task by step; ``kind`` is the field of :class:`~libmoe.analysis.studies.Quality`."""
    return {s: getattr(q, kind)[name] for s, q in run.quality.items() if name in getattr(q, kind)}


def lost(runs: Sequence[Run], measure: Measure, rising: bool = False) -> list[Lost]:
    """One for each run that was measured.

    Args:
        rising: higher scores are better.
    """
    sign = -1.0 if rising else 1.0
    found = []
    for label, same in seeds(runs).items():
        for run in same:
            scores = {step: sign * score for step, score in measure(run).items()}
            if scores:
                best, last = min(scores, key=lambda step: (scores[step], step)), max(scores)
                found.append(Lost(label, run.seed, best, last, scores[last] - scores[best]))
    return found


def losing(runs: Sequence[Run]) -> list[str]:
    """Sentences: how many last checkpoints are not the best, overall, by domain and by task.

    The best is chosen on the text that it is measured on, so a loss is at most what choosing another would have saved.
    """
    several = [run for run in runs if len(run.quality) > 1]
    if not several:
        return [
            "Every run was measured at a single checkpoint, so that none can be compared with the last one."
        ]
    return [_overall(lost(several, bits_per_byte)), *_parts(several, "domains"), *_parts(several, "tasks")]


def _overall(all_runs: Sequence[Lost]) -> str:
    worse = [one for one in all_runs if one.loss > 0]
    if not worse:
        return f"In all of {len(all_runs)} runs the last checkpoint is the best one."
    most = max(worse, key=lambda one: one.loss)
    by_label: dict[str, list[float]] = {}
    for one in all_runs:
        by_label.setdefault(one.label, []).append(one.loss)
    mean = max(seen(by_label).values(), key=lambda one: one.value)
    over_seeds = (
        f", the largest mean over seeds that of {mean.label}, {told(mean)}" if math.isfinite(mean.low) else ""
    )
    return (
        f"In {len(worse)} of {len(all_runs)} runs the last checkpoint is not the best; the largest loss is "
        f"{number(most.loss)} bits per byte ({most.label}, seed {most.seed}, step {most.best} instead of {most.last})"
        f"{over_seeds}. The best is chosen on the same text, so that this is an upper bound."
    )


def _parts(runs: Sequence[Run], kind: str) -> list[str]:
    """A sentence on all domains, where there are several, or on all tasks."""
    scores = [quality for run in runs for quality in run.quality.values()]
    names = list(dict.fromkeys(name for quality in scores for name in getattr(quality, kind)))
    if len(names) < (2 if kind == "domains" else 1):
        return []
    said = []
    for name in names:
        falling = kind == "domains" or any(name in quality.falling for quality in scores)
        of_runs = lost(runs, partial(named, kind=kind, name=name), rising=not falling)
        worse = [one.loss for one in of_runs if one.loss > 0]
        most = f", at most by {number(max(worse))}" if worse else ""
        said.append(f"{name} in {len(worse)} of {len(of_runs)}{most}")
    return [f"By {kind[:-1]}, runs whose last checkpoint is not the best: {listing(said, 12)}."]
