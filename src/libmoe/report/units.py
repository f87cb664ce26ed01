"""The held-out units that runs were scored on, arranged for the statistics.

The finest units that all of the asked runs share are taken: windows, which are drawn by document within their domain;
else the domains, which stand for those one might have chosen; else the single mean of each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.report.load import Grid, Row
from libmoe.stats import Units

Floats = NDArray[np.float64]
Run = tuple[str, int]
Tables = dict[str, Floats]
"""``{domain: [windows, 2]}`` bits and bytes."""


@dataclass(frozen=True)
class HeldOut:
    """Scores of several runs on the same units.

    Attributes:
        kind: ``documents`` (windows drawn by document), ``windows``, ``domains`` or ``runs`` (one number each).
        domain_U: the domain of each unit, one name for all where there are none.
        cluster_U: what each unit is drawn with.
        size_U: weight of each unit.
        bytes: of all units together; how many units where they are no text.
        scores: per run, bits per byte on each unit.
    """

    kind: str
    domain_U: tuple[str, ...]
    cluster_U: tuple[tuple[str, int], ...]
    size_U: Floats
    bytes: int
    scores: Mapping[Run, Floats]

    @cached_property
    def units(self) -> Units:
        """What each unit weighs, and what is drawn together."""
        within = self.domain_U if self.kind in ("documents", "windows") else None
        return Units(len(self.domain_U), clusters=self.cluster_U, size=self.size_U, strata=within)

    def gain(self, method: str, baseline: str, seeds: Sequence[int]) -> Floats:
        """``method - baseline``, ``[S, U]``."""
        return np.stack([self.scores[method, s] - self.scores[baseline, s] for s in seeds])

    def table(self, methods: Sequence[str], seeds: Sequence[int]) -> Floats:
        """Scores ``[M, S, U]``."""
        return np.array([[self.scores[method, seed] for seed in seeds] for method in methods])

    def within(self, domain: str) -> HeldOut:
        """The units of one domain."""
        inside = [place for place, name in enumerate(self.domain_U) if name == domain]
        return HeldOut(
            self.kind,
            tuple(self.domain_U[place] for place in inside),
            tuple(self.cluster_U[place] for place in inside),
            self.size_U[inside],
            round(self.bytes * float(self.size_U[inside].sum() / self.size_U.sum())),
            {run: score[inside] for run, score in self.scores.items()},
        )

    @property
    def lone_documents(self) -> list[str]:
        """Domains of which all windows are of one document: nothing tells how another would have come out."""
        if self.kind != "documents":
            return []
        held = {name: {c for c in self.cluster_U if c[0] == name} for name in dict.fromkeys(self.domain_U)}
        return [name for name, clusters in held.items() if len(clusters) == 1]


class Evaluations:
    """What the runs of a grid left of their held-out windows, read once.

    Attributes:
        equal_domains: whether reported bits per byte average the domains instead of pooling all bytes.
    """

    def __init__(self, grid: Grid) -> None:
        evaluations = {run: grid.runs[run].evaluation for run in grid.runs}
        self._windows = {run: _tables(evaluation.get("windows")) for run, evaluation in evaluations.items()}
        self._documents = {
            run: _numbers(evaluation.get("window_documents"), self._windows[run])
            for run, evaluation in evaluations.items()
        }
        self.equal_domains = self._weigh_domains_alike(grid.finished)

    def shared(self, rows: Iterable[Row]) -> HeldOut:
        """The finest units that these runs have in common."""
        rows = list(rows)
        tables = {(row.method, row.seed): self._windows[row.method, row.seed] for row in rows}
        first = next(iter(tables.values()), {})
        if first and all(_same_bytes(table, first) for table in tables.values()):
            return self._by_window(tables)
        shared = set.intersection(*(set(row.domains) for row in rows)) if rows else set()
        names = sorted(shared) if len(shared) > 1 else ["all"]
        by_domain = {
            (row.method, row.seed): np.array(
                [row.domains[name] for name in names] if len(shared) > 1 else [row.bits_per_byte], dtype=float
            )
            for row in rows
        }
        clusters = tuple((name, 0) for name in names)
        kind = "domains" if len(names) > 1 else "runs"
        return HeldOut(kind, tuple(names), clusters, np.ones(len(names)), len(names), by_domain)

    def _by_window(self, tables: Mapping[Run, Tables]) -> HeldOut:
        first = next(iter(tables.values()))
        domains = list(first)
        documents = [self._documents[run] for run in tables]
        known = bool(documents[0]) and all(numbers == documents[0] for numbers in documents)
        size_by_domain = [first[name][:, 1] for name in domains]
        share = [1 / size.sum() if self.equal_domains else 1.0 for size in size_by_domain]
        kept_U = np.concatenate(size_by_domain) > 0  # a window may hold nothing but the end of a document
        place = [(name, i) for name in domains for i in range(len(first[name]))]
        owner = [(name, documents[0][name][i]) for name, i in place] if known else place

        def score(table: Tables) -> Floats:
            bits, size = np.concatenate([table[name] for name in domains]).T
            return bits[kept_U] / size[kept_U]

        return HeldOut(
            "documents" if known else "windows",
            tuple(name for (name, _), kept in zip(place, kept_U, strict=True) if kept),
            tuple(key for key, kept in zip(owner, kept_U, strict=True) if kept),
            np.concatenate([size * weight for size, weight in zip(size_by_domain, share, strict=True)])[
                kept_U
            ],
            int(sum(size.sum() for size in size_by_domain)),
            {run: score(table) for run, table in tables.items()},
        )

    def _weigh_domains_alike(self, rows: Sequence[Row]) -> bool:
        """Tell from the numbers which of the two was reported."""
        by_bytes, alike = [], []
        for row in rows:
            if tables := self._windows[row.method, row.seed]:
                reported = row.bits_per_byte or 0.0
                bits, size = np.array([table.sum(axis=0) for table in tables.values()]).T
                by_bytes.append(abs(bits.sum() / size.sum() - reported))
                alike.append(abs((bits / size).mean() - reported))
        return bool(max(alike, default=0.0) < max(by_bytes, default=0.0))


def _tables(content: Any) -> Tables:
    """``{domain: [windows, 2]}`` bits and bytes, or nothing unless all of it is usable."""
    if not isinstance(content, dict):
        return {}
    try:
        tables = {str(domain): np.asarray(pairs, dtype=np.float64) for domain, pairs in content.items()}
    except (TypeError, ValueError):
        return {}
    usable = all(
        table.ndim == 2
        and table.shape[1] == 2
        and np.isfinite(table).all()
        and (table[:, 1] >= 0).all()
        and table[:, 1].any()
        for table in tables.values()
    )
    return {name: tables[name] for name in sorted(tables)} if usable else {}


def _numbers(content: Any, tables: Tables) -> dict[str, list[int]]:
    """The document of each window, or nothing unless there is one for each."""
    if not isinstance(content, dict) or not tables:
        return {}
    found = {name: content.get(name) for name in tables}
    usable = all(
        isinstance(numbers, list)
        and len(numbers) == len(tables[name])
        and all(isinstance(number, int) for number in numbers)
        for name, numbers in found.items()
    )
    return {name: list(numbers or ()) for name, numbers in found.items()} if usable else {}


def _same_bytes(a: Tables, b: Tables) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name][:, 1], b[name][:, 1]) for name in a)
