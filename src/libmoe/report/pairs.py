"""All methods of a group against each other: which pairs differ, and whether any do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from libmoe.report.compare import LEVEL
from libmoe.report.load import Row
from libmoe.report.units import Evaluations, Floats, HeldOut
from libmoe.report.values import number
from libmoe.stats import (
    Crossed,
    Detectable,
    Scatter,
    Variability,
    cliques,
    crossed_f,
    crossed_t,
    friedman,
    holm,
    largest_block,
    variability,
)
from libmoe.stats.friedman import block_ranks

POWER = 0.8


@dataclass(frozen=True)
class Group:
    """Methods that finished the same seeds, scored on the same units.

    Attributes:
        value_MSU: bits per byte.
        pool: scatter of seeds, from more methods than these if there are.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    held: HeldOut
    value_MSU: Floats
    pool: Scatter | None

    @property
    def clusters(self) -> int:
        return self.held.units.clusters

    def domain_scores(self) -> tuple[list[str], Floats]:
        """Names of domains and bits per byte ``[M, S, domains]``."""
        names = list(dict.fromkeys(self.held.domain_U))
        parts = [self.held.within(name) for name in names]
        scores = [part.units.mean(part.table(self.methods, self.seeds)) for part in parts]
        return names, np.stack(scores, axis=-1)

    def resolution(self) -> Variability | None:
        """What makes differences within the group uncertain; ``None`` where one seed tells nothing of others."""
        if self.pool is None or len(self.seeds) < 2:
            return None
        own = variability(self.value_MSU, self.held.units)
        pooled = 1 + self.pool.freedom // max(1, len(self.seeds) - 1)
        return Variability(self.pool.sigma, own.unit_sigma, max(2, pooled))


def group(
    rows: Sequence[Row], evaluations: Evaluations, names: Sequence[str], pool: Scatter | None
) -> Group | None:
    """The largest complete table of these methods; ``None`` where fewer than two share a seed."""
    finished = {name: [row.seed for row in rows if row.method == name] for name in names}
    methods, seeds = largest_block({name: seeds for name, seeds in finished.items() if seeds})
    if len(methods) < 2:
        return None
    held = evaluations.shared([row for row in rows if row.method in methods and row.seed in seeds])
    return Group(methods, seeds, held, held.table(methods, seeds), pool)


def compare_all(found: Group) -> dict[str, Any]:
    """Every pair, corrected together, and one test of all.

    Returns:
        ``p_value`` of "all alike" over other seeds and text, ``friedman_p`` over seeds on this very text,
        ``pairs`` (better one first, the largest difference first), and ``groups`` of methods of which no two differ.
    """
    units = found.held.units
    place = {name: m for m, name in enumerate(found.methods)}
    mean_M = units.mean(found.value_MSU).mean(axis=1)
    order = sorted(found.methods, key=lambda name: mean_M[place[name]])
    differences: dict[tuple[str, str], Crossed] = {
        (a, b): crossed_t(found.value_MSU[place[a]] - found.value_MSU[place[b]], units, pool=found.pool)
        for a, b in combinations(order, 2)
    }
    known = {pair: d.p_value for pair, d in differences.items() if math.isfinite(d.p_value)}
    corrected = holm(known)
    alike = {(place[a], place[b]) for a, b in differences if not corrected.get((a, b), 1.0) < LEVEL}
    omnibus = crossed_f(found.value_MSU, units, pool=found.pool)
    by_seed = friedman(block_ranks(units.mean(found.value_MSU), lower_is_better=True))
    return {
        "methods": order,
        "seeds": list(found.seeds),
        "unit": found.held.kind,
        "clusters": found.clusters,
        "f": omnibus.f,
        "p_value": number(omnibus.p_value),
        "friedman_p": by_seed.f_p,
        "pairs": [
            {
                "better": a,
                "worse": b,
                "mean": d.difference,
                "low": number(d.low),
                "high": number(d.high),
                "p_value": number(d.p_value),
                "p_corrected": corrected.get((a, b)),
            }
            for (a, b), d in sorted(differences.items(), key=lambda item: item[1].difference)
        ],
        "groups": [
            [found.methods[m] for m in clique] for clique in cliques([place[name] for name in order], alike)
        ],
    }


def detectable(found: Group, comparisons: int, reference: float) -> dict[str, Any]:
    """The minimal detectable effect of these runs, in bits per byte, as a share of ``reference`` and in words."""
    model, seeds = found.resolution(), len(found.seeds)
    seen = (
        model.detectable(seeds, found.clusters, comparisons=max(1, comparisons), power=POWER)
        if model is not None
        else Detectable(math.inf, seeds, found.clusters, POWER)
    )
    unit = found.held.kind.removesuffix("s")
    return {
        "effect": number(seen.effect),
        "share": number(seen.effect / reference),
        "seeds": seeds,
        "units": found.clusters,
        "unit": unit,
        "comparisons": max(1, comparisons),
        "power": POWER,
        "words": seen.words(reference, "number" if unit == "run" else unit),
    }


def named_families(protocol: Mapping[str, Any], notes: list[str]) -> dict[str, list[str]]:
    """The groups of methods that the protocol wants compared among themselves."""
    families = protocol.get("families") or {}
    if not isinstance(families, dict):
        notes.append("The protocol's 'families' is no object of lists and was left out.")
        return {}
    return {
        str(name): list(dict.fromkeys(map(str, keys)))
        for name, keys in families.items()
        if isinstance(keys, list)
    }
