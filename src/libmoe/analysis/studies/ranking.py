"""Sentences about the drop-top-1 test: where hiding the best-ranked expert hurts, and where it helps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from libmoe.analysis.studies.words import Seen, listing, percent, told

ALL = "all"
"""The condition in which every MoE layer hides its best expert."""


def ranking(gaps: Mapping[str, Mapping[str, Seen]]) -> list[str]:
    """What the relative gaps say, by label and condition (a layer, or :data:`ALL`); beyond means that 0 is outside.

    Which gaps are below 0 is said of every condition.
    """
    over_all = [found[ALL] for found in gaps.values() if ALL in found]
    beyond = sorted((one for one in over_all if one.low > 0), key=lambda one: -one.value)
    rest = [one for one in over_all if one not in beyond]
    said = (
        f"Hiding each token's best-ranked expert in all MoE layers raises the loss beyond its interval in "
        f"{len(beyond)} of {len(over_all)} methods"
    )
    if beyond:
        said += f", most in {_named(beyond[0])}"
    if len(beyond) > 1:
        said += f", least of them in {_named(beyond[-1])}"
    if rest:
        said += f"; not in {listing([_named(one) for one in rest])}"
    return [f"{said}.", _negative(gaps)]


def _negative(gaps: Mapping[str, Mapping[str, Seen]]) -> str:
    below = [
        (f"{one.label}, {'all layers' if layer == ALL else f'layer {layer}'}: {told(one, percent)}", one)
        for found in gaps.values()
        for layer, one in found.items()
        if one.value < 0
    ]
    sure = [name for name, one in below if one.high < 0]
    unsure = [name for name, one in below if not one.high < 0]
    said = []
    if sure:
        said.append(f"The ranking is wrong, beyond its interval, in {listing(sure)}.")
    if unsure:
        said.append(f"Negative, but not beyond an interval: {listing(unsure)}.")
    return " ".join(said) or "No gap is negative."


def _named(one: Seen) -> str:
    return f"{one.label}: {told(one, percent)}{'' if math.isfinite(one.low) else ' (no interval)'}"
