"""Few of many, evenly spaced."""

from __future__ import annotations

import numpy as np


def thinned(size: int, most: int) -> list[int]:
    """At most ``most`` places of ``size``, the last and (if there is room for two) the first among them."""
    return sorted({round(x) for x in np.linspace(size - 1, 0, min(size, most))}) if size else []
