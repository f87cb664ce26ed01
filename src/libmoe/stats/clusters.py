"""Which items belong together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def numbered(clusters: Sequence[Hashable] | None, size: int) -> Places:
    """The number of each item's cluster, from 0 in order of appearance; ``None``: each item is its own.

    Raises:
        ValueError: not one cluster per item.
    """
    if clusters is None:
        return np.arange(size)
    if len(clusters) != size:
        raise ValueError(f"{len(clusters)} clusters do not fit {size} values")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


class Members:
    """The items of clusters that are numbered from 0.

    Attributes:
        items, count: how many items and clusters there are.
    """

    def __init__(self, cluster: Places) -> None:
        self.items = len(cluster)
        self._order = np.argsort(cluster, kind="stable")
        self._size = np.bincount(cluster)
        self._start = np.cumsum(self._size) - self._size
        self.count = len(self._size)

    def of(self, clusters: Places) -> Places:
        """The places of all items of ``clusters``, one after the other; a cluster may occur several times."""
        size = self._size[clusters]
        stop = np.cumsum(size)
        shift = np.repeat(self._start[clusters] - stop + size, size)
        return self._order[np.arange(len(shift)) + shift]
