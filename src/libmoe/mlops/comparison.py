"""Is a version worse than another?  Paired over the same held-out windows, clustered by document."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libmoe.core.errors import DataError
from libmoe.eval.results import compare
from libmoe.stats import Paired, Pairs, paired_average

LEVEL = 0.95


@dataclass(frozen=True)
class Regression:
    """The outcome.

    Attributes:
        worse: significantly worse at the level of 5 %, on held-out text or, corrected for their number, on any task.
        telling: there are enough documents for a difference to be found at all.
        words: what was found, and what would have been.
        difference, low, high, p_value: bits per byte more than the other version needs.
        tasks: names of tasks on which it is significantly worse.
    """

    worse: bool
    telling: bool
    words: str
    difference: float
    low: float
    high: float
    p_value: float
    tasks: list[str]


def regression(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], folders: tuple[Path, Path] | None = None
) -> Regression:
    """Compare an evaluation with that of another version.

    Args:
        ours, theirs: what ``eval.json`` holds.
        folders: run folders of both, whose task scores are compared as well where both have some.

    Raises:
        DataError: they were not measured on the same windows.
    """
    found = heldout_difference(ours, theirs)
    tasks = [] if folders is None else _worse_tasks(folders)
    seen = found.detectable(LEVEL)
    significant = found.p_value < 1 - LEVEL and found.difference > 0
    words = (
        f"{found.difference:+.4f} bits per byte ({found.low:+.4f} to {found.high:+.4f}, p = {found.p_value:.2g})"
        + (f"; worse on {', '.join(tasks)}" if tasks else "")
        + (f"; one of {seen:.2g} would likely be seen" if math.isfinite(seen) else "")
        + ("; too few documents to see any" if math.isinf(seen) else "")
    )
    return Regression(
        worse=bool(significant or tasks),
        telling=not math.isinf(seen),
        words=words,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        tasks=tasks,
    )


def heldout_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Paired:
    """Bits per byte of ``ours`` minus those of ``theirs``, domains weighted by their bytes as the score itself does.

    Raises:
        DataError: windows are missing, or other ones.
    """
    mine, other = ours.get("windows") or {}, theirs.get("windows") or {}
    if not mine or not other:
        raise DataError("an evaluation without windows cannot be paired; evaluate the model again")
    documents = ours.get("window_documents") or {}
    if sizes(mine) != sizes(other) or documents != (theirs.get("window_documents") or {}):
        raise DataError(
            "the two versions were measured on other held-out windows; evaluate both in the same way"
        )
    parts, weights = [], []
    for domain, windows in mine.items():
        bytes_W = np.array([window[1] for window in windows], dtype=np.float64)
        # Divided by the mean size, the windows' mean is the domain's bits over its bytes.
        a, b = (np.array([w[0] for w in side[domain]]) / bytes_W.mean() for side in (other, mine))
        parts.append(Pairs(a.tolist(), b.tolist(), documents.get(domain)))
        weights.append(float(bytes_W.sum()))
    return paired_average(parts, weights, level=LEVEL)


def sizes(windows: Mapping[str, Any]) -> dict[str, list[float]]:
    """Bytes of each window by domain: what tells held-out texts apart."""
    return {domain: [float(window[1]) for window in found] for domain, found in windows.items()}


def _worse_tasks(folders: tuple[Path, Path]) -> list[str]:
    """Tasks on which the first is worse; none where either has no task scores that can be paired."""
    with contextlib.suppress(DataError):
        return [row.name for row in compare([folders[1], folders[0]]).tasks if row.verdict == "worse"]
    return []
