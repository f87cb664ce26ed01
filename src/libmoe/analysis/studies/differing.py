"""Sentences about a table of differences: which hold after correction, and which measures show none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libmoe.analysis.studies.figures import Table
from libmoe.analysis.studies.words import Seen, listing, told

LEVEL = 0.05

Row = Mapping[str, Any]


def differing(table: Table, lead: str) -> list[str]:
    """In which measures there are differences that hold after Holm's correction over the pairs, and in which not.

    Args:
        table: of :func:`~libmoe.analysis.studies.contrast.differences`.
        lead: what is compared with what; the sentences begin with it.
    """
    holding, rest, unknown = [], [], []
    for measure, rows in _by_measure(table):
        tested = [row for row in rows if row["p_holm"] is not None]
        found = [row for row in tested if row["p_holm"] < LEVEL]
        if found:
            holding.append(f"{measure} for {len(found)} of {len(tested)}: {_named(found, table)}")
        elif tested:
            clearest = min(tested, key=lambda row: (row["p_value"], -abs(row["difference"])))
            rest.append(f"{measure} (clearest: {_named([clearest], table)})")
        else:
            largest = max(rows, key=lambda row: abs(row["difference"]))
            unknown.append(f"{measure} (largest: {_named([largest], table)})")
    said = []
    if holding:
        said.append(f"{lead}, beyond the interval after Holm's correction: {'; '.join(holding)}.")
    if rest:
        said.append(f"{lead}, no difference beyond the interval after Holm's correction: {listing(rest)}.")
    if unknown:
        said.append(f"{lead}, no interval (a single seed), so that nothing is decided: {listing(unknown)}.")
    return said


def _by_measure(table: Table) -> Iterator[tuple[str, list[Row]]]:
    rows = [dict(zip(table, row)) for row in zip(*table.values())]
    for measure in dict.fromkeys(table["measure"]):
        yield measure, [row for row in rows if row["measure"] == measure]


def _named(rows: Sequence[Row], table: Table) -> str:
    """Pairs with their differences; the method alone names one where all pairs are of the same two values."""
    several = len(set(zip(table["from"], table["to"]))) > 1
    said = []
    for row in rows:
        name = f"{row['method']} ({row['to']})" if several else row["method"]
        low, high = (math.nan if row[end] is None else row[end] for end in ("low", "high"))
        said.append(f"{name} {told(Seen(name, row['difference'], low, high, low, high))}")
    return listing(said)
