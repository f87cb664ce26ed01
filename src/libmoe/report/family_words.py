"""Whether the members of a family differ, in words."""

from __future__ import annotations

from typing import Any

from libmoe.report.compare import LEVEL
from libmoe.report.naming import Summary, label_of
from libmoe.report.numbers import count, interval, listing, percent, signed


def family_verdict(summary: Summary, family: dict[str, Any]) -> str:
    """Whether the members of a family differ, which, by how much, and what would have been seen."""
    differ = [
        pair for pair in family["pairs"] if pair["p_corrected"] is not None and pair["p_corrected"] < LEVEL
    ]
    largest = family["pairs"][0]
    size = (
        f"{label_of(summary, largest['better'])} against {label_of(summary, largest['worse'])} "
        f"{signed(largest['mean'])} {interval(largest['low'], largest['high'])}".rstrip()
    )
    members = count(len(family["methods"]), "member")
    if differ:
        named = [
            f"{label_of(summary, p['better'])} is better than {label_of(summary, p['worse'])}" for p in differ
        ]
        pairs = len(family["pairs"])
        some = f"{len(differ)} of {count(pairs, 'pair')} of its {members}" if pairs > 1 else f"its {members}"
        return (
            f"{some} {'differs' if len(differ) == 1 < pairs else 'differ'}: {listing(named, 4)}; "
            f"the largest difference is {size} bits per byte."
        )
    p = family["p_value"]
    if p is None:
        return (
            f"whether its {members} differ cannot be told from one number each (largest difference: {size})."
        )
    share = family["detectable"]["share"]
    power = (
        f"one of more than {percent(share, 1 if share < 0.1 else 0)} would have been seen "
        f"({percent(family['detectable']['power'], 0)} of the time)"
        if share is not None
        else "with one seed none could have been told from chance"
    )
    if p < LEVEL:
        claims = count(len(family["pairs"]), "pair")
        return (
            f"no pair of its {members} differs after correction for {claims}, though a test of all together says that "
            f"they are not alike (p = {p:.2g}; too bold where one scatters far more than the others); the largest "
            f"difference is {size}."
        )
    return f"no difference found between its {members} (p = {p:.2g}); {power}. The largest seen: {size}."
