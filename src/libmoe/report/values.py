"""Numbers in files that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """``value`` if it is a finite number."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; nothing where there is none."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(key): found for key, item in items if (found := number(item)) is not None}
