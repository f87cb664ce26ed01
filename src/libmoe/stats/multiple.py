"""Many comparisons at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p-values so that the chance of *any* false claim among them keeps its level, however they depend.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected: dict[Key, float] = {}
    largest = 0.0
    for place, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[key]))
        corrected[key] = largest
    return {key: corrected[key] for key in p_values}
