"""Which domain each row of training comes from: a pure function of the mixture, the seed and the row's number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.seeding import derive_seed
from libmoe.data.order import random_unit

ROUND = 1000
"""Rows over which the mixture holds exactly."""


class Mixing:
    """An endless sequence of rows, each of one domain, in rounds of 1,000.

    A domain with n rows of a round gets one at a random place in each n-th part of it, so that any stretch of rows
    is close to the mixture.

    Args:
        sizes: tokens of each domain, by name.
        mixture: ``"proportional"`` to the sizes, ``"uniform"``, or weights by domain (those left out get none).
        seed: decides the places together with the domains' names.

    Attributes:
        per_round: rows of each domain in a round, int64 [domains].

    Raises:
        ConfigError: an impossible mixture.
    """

    def __init__(self, sizes: Mapping[str, int], mixture: str | Mapping[str, float], seed: int) -> None:
        self.domains, self.seed = list(sizes), seed
        self.per_round = _rows_per_round(sizes, mixture)
        # Rounds are pure functions; the cache only saves time.
        self._round = lru_cache(maxsize=4)(self._make_round)

    def place(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``first .. first + count``: the domain of each, and how many of that domain came before it."""
        domains, numbers = [], []
        while count:
            index, start = divmod(first, ROUND)
            taken = min(count, ROUND - start)
            domain, number = (part[start : start + taken] for part in self._round(index))
            domains.append(domain)
            numbers.append(number + index * self.per_round[domain])
            first, count = first + taken, count - taken
        return np.concatenate(domains), np.concatenate(numbers)

    def visits(self, rows: int) -> np.ndarray:
        """How many of the first ``rows`` rows each domain has, int64 [domains]."""
        rounds, rest = divmod(rows, ROUND)
        return rounds * self.per_round + np.bincount(
            self._round(rounds)[0][:rest], minlength=len(self.domains)
        )

    def row_of(self, domain: int, visit: int) -> int:
        """The row in which a domain, one with a share, has its visit of this number (the first is 0)."""
        index, number = divmod(visit, int(self.per_round[domain]))
        return index * ROUND + int(np.flatnonzero(self._round(index)[0] == domain)[number])

    def _make_round(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The domain of each row of a round [1000], and its number among the domain's rows of the round."""
        domains = np.repeat(np.arange(len(self.domains)), self.per_round)
        numbers = np.concatenate([np.arange(n) for n in self.per_round])
        sizes = zip(self.domains, self.per_round, strict=True)
        jitter = np.concatenate([random_unit(n, self.seed, "round", name, index) for name, n in sizes])
        order = np.argsort((numbers + jitter) / self.per_round[domains], kind="stable")
        return domains[order], numbers[order]


class MixingInTurn:
    """Mixtures one after the other; each domain goes on where it was.

    Args:
        first: the mixture of row 0.
        sizes: tokens of each domain, by name.

    Attributes:
        per_round: of the last mixture.
    """

    def __init__(self, first: Mixing, sizes: Mapping[str, int]) -> None:
        self.sizes, self.seed = dict(sizes), first.seed
        self._mixings, self._starts = [first], [0]
        self._before = [np.zeros(len(self.sizes), dtype=np.int64)]  # rows of each domain before a mixture sets in

    @property
    def per_round(self) -> np.ndarray:
        return self._mixings[-1].per_round

    def change(self, row: int, mixture: Mapping[str, float]) -> None:
        """Another mixture from ``row`` on.

        Raises:
            ConfigError: the last change is later, or the mixture is impossible.
        """
        if row < self._starts[-1]:
            raise ConfigError(f"the mixture has changed at row {self._starts[-1]} already, which is after row {row}")
        seed = derive_seed(self.seed, "mixing in turn", len(self._mixings))
        mixing, before = Mixing(self.sizes, mixture, seed), self.visits(row)
        self._mixings, self._starts = [*self._mixings, mixing], [*self._starts, row]
        self._before.append(before)

    def place(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Mixing.place`."""
        domains, numbers = [], []
        while count:
            turn = bisect_right(self._starts, first) - 1
            start, end = self._starts[turn], ([*self._starts[1:], first + count])[turn]
            taken = min(count, end - first)
            domain, number = self._mixings[turn].place(first - start, taken)
            domains.append(domain)
            numbers.append(number + self._before[turn][domain])
            first, count = first + taken, count - taken
        return np.concatenate(domains), np.concatenate(numbers)

    def visits(self, rows: int) -> np.ndarray:
        """As :meth:`Mixing.visits`."""
        turn = bisect_right(self._starts, rows) - 1
        return self._before[turn] + self._mixings[turn].visits(rows - self._starts[turn])


def _rows_per_round(sizes: Mapping[str, int], mixture: str | Mapping[str, float]) -> np.ndarray:
    """Turn the mixture into whole rows of a round, by largest remainder; every wanted domain gets one."""
    share = np.array(weights(sizes, mixture))
    if not share.sum() > 0:
        raise ConfigError("the mixture gives no domain any weight")
    if (share > 0).sum() > ROUND:
        raise ConfigError(f"the mixture has {(share > 0).sum()} domains; at most {ROUND} fit")
    exact = share / share.sum() * ROUND
    counts = np.where(share > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    while counts.sum() != ROUND:
        step = 1 if counts.sum() < ROUND else -1
        gap = np.where((share > 0) & (counts + step > 0), (exact - counts) * step, -np.inf)
        counts[np.argmax(gap)] += step
    return counts


def weights(sizes: Mapping[str, int], mixture: str | Mapping[str, float]) -> Sequence[float]:
    """The weight of each domain.  Raises ConfigError for a mixture that cannot be read."""
    if mixture == "proportional":
        return [float(size) for size in sizes.values()]
    if mixture == "uniform":
        return [1.0] * len(sizes)
    if isinstance(mixture, str):
        raise unknown("mixture", mixture, ("proportional", "uniform"))
    for domain, weight in mixture.items():
        if domain not in sizes:
            raise unknown("domain of the mixture", domain, sizes)
        if not (0 <= weight < float("inf")):
            raise ConfigError(f"mixture weight {weight} of domain {domain!r} is not a number >= 0")
    return [float(mixture.get(domain, 0.0)) for domain in sizes]
