"""Which methods cannot be told apart: the data of a critical-difference diagram."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.friedman import Friedman, block_ranks, cluster_means, friedman, nemenyi_difference
from libmoe.stats.multiple import holm
from libmoe.stats.permutation import sign_flip

Floats = NDArray[np.float64]
Pair = tuple[str, str]
Clique = tuple[str, ...]


@dataclass(frozen=True)
class CriticalDifference:
    """Mean ranks of methods, and two answers to which of them differ.

    Attributes:
        mean_rank: per method, best first; 1 is the best.
        friedman: whether any two differ; where its ``f_p`` is large, no pair should be claimed by mean ranks.
        difference: Nemenyi's critical difference of mean ranks.
        nemenyi: groups of methods whose mean ranks all lie within ``difference``.
        p_values: of each pair (better one first), Wilcoxon's signed-rank test corrected by Holm.
        pairwise: groups of methods of which no two differ by ``p_values``.

    Groups are as large as can be, best first, and have two members or more; lines in a diagram.
    """

    mean_rank: dict[str, float]
    friedman: Friedman
    difference: float
    nemenyi: tuple[Clique, ...]
    p_values: dict[Pair, float]
    pairwise: tuple[Clique, ...]


def critical_difference(
    methods: Sequence[str],
    score_MB: Floats,
    *,
    clusters: Sequence[Hashable] | None = None,
    lower_is_better: bool = False,
    level: float = 0.95,
) -> CriticalDifference:
    """Compare all methods with each other over blocks (tasks, domains, seeds).

    Nemenyi's test takes what two methods differ by from the ranks of all, so that its answer about a pair depends on
    who else takes part; tests of pairs do not, and are to be preferred (Benavoli, Corani & Mangili 2016, "Should we
    really use post-hoc tests based on mean-ranks?").  B blocks let no pair have a p-value below
    ``2^(1 - B)``, and the correction multiplies that by the number of pairs: few seeds alone never suffice.

    Args:
        methods: names.
        score_MB: one score per method and block.
        clusters: the cluster of each block, averaged before anything is tested: blocks must be independent, and
            domains scored by one run are not.  ``None``: each block is its own.

    Raises:
        DataError: fewer than two methods, no blocks, scores that are not finite, or numbers that do not fit.
    """
    if len(set(methods)) != len(score_MB) or len(methods) != len(score_MB):
        raise DataError(f"{len(methods)} names (some twice?) do not fit scores of shape {score_MB.shape}")
    rank_MC = block_ranks(score_MB, clusters, lower_is_better=lower_is_better)
    score_MC = cluster_means(score_MB, clusters)
    mean = rank_MC.mean(axis=1)
    order = sorted(range(len(methods)), key=lambda place: mean[place])
    raw = {(i, j): signed_rank(score_MC[i] - score_MC[j]) for i, j in combinations(order, 2)}
    corrected = holm(raw)
    reach = nemenyi_difference(len(methods), rank_MC.shape[1], level)

    def named(alike: set[tuple[int, int]]) -> tuple[Clique, ...]:
        return tuple(tuple(methods[place] for place in group) for group in cliques(order, alike))

    return CriticalDifference(
        mean_rank={methods[place]: float(mean[place]) for place in order},
        friedman=friedman(rank_MC),
        difference=reach,
        nemenyi=named({(i, j) for i, j in raw if mean[j] - mean[i] <= reach}),
        p_values={(methods[i], methods[j]): p for (i, j), p in corrected.items()},
        pairwise=named({pair for pair, p in corrected.items() if p > 1 - level}),
    )


def signed_rank(differences: Floats) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, equal blocks left out: a sign flip of ranked sizes."""
    from scipy.stats import rankdata

    differences = differences[differences != 0]
    return sign_flip(np.sign(differences) * rankdata(np.abs(differences))).p_value


def cliques(order: Sequence[int], alike: set[tuple[int, int]]) -> list[list[int]]:
    """All largest groups of which any two are alike (Bron & Kerbosch 1973), each and all in the given order."""
    friends: Mapping[int, set[int]] = {
        i: {j for j in order if (i, j) in alike or (j, i) in alike} for i in order
    }
    found: list[set[int]] = []

    def grow(group: set[int], open_: set[int], closed: set[int]) -> None:
        if not open_ and not closed:
            found.append(group)
            return
        pivot = max(open_ | closed, key=lambda i: len(friends[i] & open_))
        for i in open_ - friends[pivot]:
            grow(group | {i}, open_ & friends[i], closed & friends[i])
            open_, closed = open_ - {i}, closed | {i}

    grow(set(), set(order), set())
    place = {i: at for at, i in enumerate(order)}
    groups = [sorted(group, key=place.__getitem__) for group in found if len(group) > 1]
    return sorted(groups, key=lambda group: [place[i] for i in group])
