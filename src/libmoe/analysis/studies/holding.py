"""A comparison by one fact holds the others: which runs take part in it, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.studies.runs import TELLING, Run, by_fact
from libmoe.analysis.studies.words import listing


def held(runs: Sequence[Run], fact: str) -> tuple[list[Run], str]:
    """Runs that are alike in all of :data:`~libmoe.analysis.studies.runs.TELLING` but ``fact``.

    Where another fact differs, its value stays with which most comparisons within a method can be made; of equals
    the one with more runs, then the first.

    Returns:
        The runs, and a sentence about those that are left out (empty if there are none).
    """
    kept, said = list(runs), []
    for name in TELLING:
        groups = by_fact(kept, name)
        if name == fact or len(groups) < 2:
            continue
        value = max(groups, key=lambda value: (_comparisons(groups[value], fact), len(groups[value])))
        others = [other for other in groups if other != value]
        said.append(
            f"Only runs with {_words(name, value)} are compared; {len(kept) - len(groups[value])} with "
            f"{listing([_words(name, other) for other in others])} are left out."
        )
        kept = groups[value]
    return kept, " ".join(said)


def values_of(runs: Sequence[Run], fact: str) -> dict[str, list[str]]:
    """By method the values of a fact that its runs have, in order."""
    found: dict[str, list[str]] = {}
    for run in runs:
        values = found.setdefault(run.method, [])
        if (value := run.fact(fact)) not in values:
            values.append(value)
    return found


def _comparisons(runs: Sequence[Run], fact: str) -> int:
    """How many values of the fact there are beside the first, over all methods."""
    told = [run for run in runs if fact in run.facts]
    return sum(len(values) - 1 for values in values_of(told, fact).values())


def _words(name: str, value: str) -> str:
    return f"{name} {value}" if value else f"no {name}"
