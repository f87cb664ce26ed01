"""Runs of several methods with several seeds on the same held-out units, and what they all have in common."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.clusters import numbered

Floats = NDArray[np.float64]


class Runs(NamedTuple):
    """Scores ``value_MSU`` of M methods with S seeds each on U units.

    Attributes:
        left_out: per method the seeds that it finished and another did not; methods with none are missing.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    value_MSU: Floats
    left_out: dict[str, tuple[int, ...]]


def common_runs(
    scores: Mapping[tuple[str, int], Sequence[float]], methods: Iterable[str] | None = None
) -> Runs:
    """Arrange the runs of the seeds that all of ``methods`` finished.

    A seed fixes the order of the data and the first weights, so only runs of the same seed are pairs; the others
    are left out, for every method alike.

    Args:
        scores: per finished run ``(method, seed)`` one number per held-out unit, in the same order everywhere.
        methods: in the order wanted; ``None``: all, in order of appearance.

    Raises:
        DataError: no runs, no common seed, or runs scored on other units or with values that are no numbers.
    """
    chosen = tuple(dict.fromkeys(method for method, _ in scores) if methods is None else methods)
    if not chosen:
        raise DataError("no finished runs to compare")
    finished = {name: {seed for method, seed in scores if method == name} for name in chosen}
    seeds = tuple(sorted(set.intersection(*finished.values())))
    if not seeds:
        raise DataError(
            f"{', '.join(map(repr, chosen))} finished no common seed; run them with the same seeds"
        )
    shape = np.shape(scores[chosen[0], seeds[0]])
    for name in chosen:
        for seed in seeds:
            value = np.asarray(scores[name, seed], dtype=np.float64)
            if value.shape != shape or value.ndim != 1 or not value.size:
                raise DataError(f"{name!r} seed {seed} has scores of shape {value.shape}, others {shape}")
            if not np.isfinite(value).all():
                raise DataError(f"{name!r} seed {seed} has scores that are not finite; evaluate it again")
    value_MSU = np.array([[scores[name, seed] for seed in seeds] for name in chosen], dtype=np.float64)
    rest = {name: tuple(sorted(finished[name].difference(seeds))) for name in chosen}
    return Runs(chosen, seeds, value_MSU, {name: left for name, left in rest.items() if left})


def largest_block(finished: Mapping[str, Iterable[int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The methods and seeds that make the complete table with the most degrees of freedom, ``(M - 1)(S - 1)``.

    Where some methods lack seeds, it is what the scatter of seeds is best estimated from; of equals, the one with
    more methods.  Empty where nothing is finished.

    Args:
        finished: the seeds of each method.
    """
    seeds_of = {method: frozenset(seeds) for method, seeds in finished.items()}
    best: tuple[tuple[str, ...], tuple[int, ...]] = ((), ())
    most = (-1, -1)
    for seeds in sorted(set(seeds_of.values()), key=sorted):
        methods = tuple(method for method, theirs in seeds_of.items() if seeds and seeds <= theirs)
        size = ((len(methods) - 1) * (len(seeds) - 1), len(methods))
        if methods and size > most:
            best, most = (methods, tuple(sorted(seeds))), size
    return best


class Units:
    """What each held-out unit weighs, which units belong together, and within what clusters are drawn.

    Args:
        count: U, how many units there are.
        clusters: the cluster of each unit (its document, its task), which is drawn as a whole; ``None``: each unit
            is its own.
        size: the weight of each unit (its bytes, for bits per byte); ``None``: all alike.
        strata: what each unit's cluster is drawn within (its domain), if other draws would keep that; ``None``:
            nothing.

    Attributes:
        count, clusters: how many units and clusters there are.
        freedom: how many more clusters than strata.

    Raises:
        DataError: not one entry per unit, a weight that is not positive, or a cluster in two strata.
    """

    def __init__(
        self,
        count: int,
        *,
        clusters: Sequence[Hashable] | None = None,
        size: Sequence[float] | Floats | None = None,
        strata: Sequence[Hashable] | None = None,
    ) -> None:
        for what, entries in (("clusters", clusters), ("size", size), ("strata", strata)):
            if entries is not None and len(entries) != count:
                raise DataError(f"{what}: {len(entries)} entries do not fit {count} units")
        self.count = count
        self._cluster_U = numbered(clusters, count)
        self._size_U = np.ones(count) if size is None else np.asarray(size, dtype=np.float64)
        if not count or not (self._size_U > 0).all():
            raise DataError("size: there must be units, and each must weigh more than nothing")
        stratum_U = np.zeros(count, dtype=np.int64) if strata is None else numbered(strata, count)
        self.clusters = int(self._cluster_U.max()) + 1
        stratum_C = np.zeros(self.clusters, dtype=np.int64)
        stratum_C[self._cluster_U] = stratum_U
        if not np.array_equal(stratum_C[self._cluster_U], stratum_U):
            raise DataError("strata: a cluster lies in two of them; give all of its units the same one")
        inside = [np.flatnonzero(stratum_C == place) for place in range(int(stratum_C.max()) + 1)]
        self.strata = [places for places in inside if len(places) > 1]
        """The clusters of each stratum that has more than one; a lone one is always drawn."""
        self.freedom = sum(len(places) - 1 for places in self.strata)
        self.size_C = np.bincount(self._cluster_U, weights=self._size_U)

    def mean(self, value_XU: Floats) -> Floats:
        """Weighted mean over units, ``[...]`` of ``[..., U]``."""
        mean: Floats = value_XU @ self._size_U / float(self._size_U.sum())
        return mean

    def sums(self, value_XU: Floats) -> Floats:
        """Weighted sum over each cluster's units, ``[..., C]`` of ``[..., U]``."""
        rows = (value_XU * self._size_U).reshape(-1, len(self._size_U))
        sums = [np.bincount(self._cluster_U, weights=row, minlength=self.clusters) for row in rows]
        return np.array(sums, dtype=np.float64).reshape(*value_XU.shape[:-1], self.clusters)

    def squares(self, value_XU: Floats) -> Floats:
        """Squared standard error of each mean over clusters, ``[...]`` of ``[..., U]``; 0 if none can be drawn.

        The cluster-robust one of a ratio of sums (Liang & Zeger 1986), within strata.
        """
        residual_XC = self.sums(value_XU - self.mean(value_XU)[..., None])
        total: Floats = np.zeros(value_XU.shape[:-1])
        for places in self.strata:
            inside = residual_XC[..., places]
            total += np.square(inside - inside.mean(axis=-1, keepdims=True)).sum(axis=-1) / (
                1 - 1 / len(places)
            )
        return total / float(self._size_U.sum()) ** 2
