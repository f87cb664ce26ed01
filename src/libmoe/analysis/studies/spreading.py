"""How differently the groups of a text are treated: the spread of a number over them, by label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from libmoe.analysis.studies.runs import Run, seeds
from libmoe.analysis.studies.words import named, poles, seen


def spreading(runs: Sequence[Run], measure: Callable[[Run], Mapping[str, float]], what: str) -> list[str]:
    """One sentence: which label treats groups most unlike, and which most alike.

    The spread is the largest minus the smallest of the groups' means over seeds; its interval is over seeds, of the
    difference of these two groups.

    Args:
        measure: a number by group; labels for which one of them is no number are left out.
        what: is measured; the sentence begins with it.
    """
    widths: dict[str, list[float]] = {}
    highest: dict[str, tuple[str, str]] = {}
    for label, same in seeds(runs).items():
        values = [measure(run) for run in same]
        groups = [group for group in values[0] if all(group in of_seed for of_seed in values)]
        means = {group: sum(of_seed[group] for of_seed in values) / len(values) for group in groups}
        if len(means) < 2 or not all(math.isfinite(mean) for mean in means.values()):
            continue
        top, bottom = max(groups, key=means.__getitem__), min(groups, key=means.__getitem__)
        widths[label] = [of_seed[top] - of_seed[bottom] for of_seed in values]
        highest[named(label)] = top, bottom
    if not widths:
        return []
    spreads = sorted(seen(widths).values(), key=lambda one: one.value)
    top, bottom = highest[spreads[-1].label]
    words = poles(spreads, f"varies most (from {bottom} up to {top})", "is most uniform")
    return [f"{what}, highest minus lowest: {words}"]
