"""What studies say in sentences: numbers with their intervals, who leads, and whether that is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from libmoe.analysis.studies.runs import Label, Run, intervals, seeds

Form = Callable[[float], str]
"""How a number is written."""


class Seen(NamedTuple):
    """A number of runs of one label (:func:`named`): mean over seeds, 95 % interval (NaN for one seed), and range."""

    label: str
    value: float
    low: float
    high: float
    least: float
    most: float


def named(label: str) -> str:
    """A label within a sentence: ``smoe, upcycled, 1x`` is ``smoe (upcycled, 1x)``."""
    method, comma, facts = label.partition(", ")
    return f"{method} ({facts})" if comma else label


def seen(values: Mapping[str, Sequence[float]]) -> dict[str, Seen]:
    """Each label's values by seed as one."""
    found = intervals(values)
    return {
        name: Seen(named(name), *found[name], min(by_seed), max(by_seed)) for name, by_seed in values.items()
    }


def by_label(runs: Sequence[Run], measure: Callable[[Run], float], label: Label | None = None) -> list[Seen]:
    """Each label's number, the least first; labels where it could not be measured are left out."""
    found = seen({name: [measure(run) for run in same] for name, same in seeds(runs, label).items()})
    return sorted((one for one in found.values() if math.isfinite(one.value)), key=lambda one: one.value)


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def percent(value: float) -> str:
    """A share as percent, three significant digits."""
    return f"{number(100 * value)} %"


def listing(names: Sequence[str], most: int = 6) -> str:
    """Join names as a sentence does, with semicolons where names hold commas; those beyond ``most`` are counted."""
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    comma, last = ("; ", "; and ") if any(", " in name for name in shown) else (", ", " and ")
    return last.join([comma.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def told(one: Seen, form: Form = number) -> str:
    """``0.61 [0.58, 0.64]``; without brackets where there is no interval."""
    ends = f" [{form(one.low)}, {form(one.high)}]" if math.isfinite(one.low) else ""
    return form(one.value) + ends


def poles(found: Sequence[Seen], most: str, least: str, form: Form = number) -> str:
    """Who is at both ends of a sorted list, and whether the upper end is decided: ``a is surest: 0.6; b ...: 0.2.``

    Args:
        found: at least one, the least first (:func:`by_label`).
        most, least: what is said of the last and of the first of them.
    """
    if len(found) == 1:
        return f"{found[0].label}: {told(found[0], form)}."
    last, first = found[-1], found[0]
    words = f"{last.label} {most}: {told(last, form)}; {first.label} {least}: {told(first, form)}."
    return f"{words} {decided(last, found)}".strip()


def decided(leader: Seen, found: Sequence[Seen]) -> str:
    """A sentence where another's interval overlaps the leader's, or where a single seed leaves no interval."""
    others = [one for one in found if one.label != leader.label]
    if others and not all(math.isfinite(one.low) for one in (leader, *others)):
        return "Where there is a single seed, another may change the order."
    rivals = [one.label for one in others if one.low <= leader.high and leader.low <= one.high]
    if not rivals:
        return ""
    words = f"The interval of {leader.label} overlaps that of {listing(rivals, 3)}"
    return f"{words}: which of them comes first is not decided."
