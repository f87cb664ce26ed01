"""Whether the catalogue and the registered methods tell the same story."""

from __future__ import annotations

from collections.abc import Mapping

from libmoe.core.errors import nearest
from libmoe.papers.catalogue import papers


def verify(methods: Mapping[str, int | None]) -> list[str]:
    """Compare the catalogue with the registered methods.

    Args:
        methods: every registered method's name with the number of the paper it realises, or ``None`` for a
            control that realises none.

    Returns:
        One line per problem, empty when both agree: a paper lists a method that is not registered; a method
        names a paper that does not exist or does not list it back.
    """
    catalogue = {entry.number: entry for entry in papers()}
    problems = []
    for entry in catalogue.values():
        for name in entry.methods:
            if name not in methods:
                guess = nearest(name, methods)
                hint = f"; did you mean {guess!r}?" if guess else ""
                problems.append(f"paper {entry.number} lists method {name!r}, which is not registered{hint}")
    for name, number in methods.items():
        if number is None:
            continue
        if number not in catalogue:
            problems.append(f"method {name!r} names paper {number}; the catalogue ends at {max(catalogue)}")
        elif name not in catalogue[number].methods:
            problems.append(f"method {name!r} names paper {number}, which does not list it back")
    return problems
