"""Do several methods rank alike over blocks?  Friedman's test, and what Nemenyi's test takes for two to differ."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.clusters import numbered

Floats = NDArray[np.float64]


class Friedman(NamedTuple):
    """The hypothesis that all methods rank alike.

    Attributes:
        chi_square, chi_p: Friedman's statistic, corrected for ties, and its p-value; too shy with few blocks.
        f, f_p: the statistic of Iman & Davenport and its p-value, which is the one to quote.
        concordance: Kendall's W, from 0 (blocks rank independently) to 1 (all rank alike).
        methods, blocks: how many.
    """

    chi_square: float
    chi_p: float
    f: float
    f_p: float
    concordance: float
    methods: int
    blocks: int


def block_ranks(
    score_MB: Floats, clusters: Sequence[Hashable] | None = None, *, lower_is_better: bool = False
) -> Floats:
    """Rank the methods in every block, 1 the best, ties sharing their mean; then average over each cluster.

    Blocks must be independent to be tested.  Domains scored by one run are not: a lucky run is lucky on all of them,
    so the run's seed is their cluster.

    Args:
        score_MB: one score per method and block.
        clusters: the cluster of each block; ``None``: each is its own.

    Returns:
        ``rank_MC``, mean ranks in each of C clusters.

    Raises:
        DataError: fewer than two methods, no blocks, scores that are not finite, or not one cluster per block.
    """
    from scipy.stats import rankdata

    if score_MB.ndim != 2 or len(score_MB) < 2 or not score_MB.size or not np.isfinite(score_MB).all():
        raise DataError(
            f"scores of shape {score_MB.shape}: must be finite, [methods, blocks], two methods or more"
        )
    rank_MB = rankdata(score_MB if lower_is_better else -score_MB, axis=0)
    return cluster_means(rank_MB, clusters)


def cluster_means(value_MB: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """Average ``[M, B]`` over the blocks of each cluster, ``[M, C]``."""
    blocks = value_MB.shape[1]
    if clusters is not None and len(clusters) != blocks:
        raise DataError(f"clusters: {len(clusters)} entries do not fit {blocks} blocks")
    cluster_B = numbered(clusters, blocks)
    size_C = np.bincount(cluster_B)
    return np.stack([np.bincount(cluster_B, weights=row) / size_C for row in value_MB])


def friedman(rank_MC: Floats) -> Friedman:
    """Friedman's test of ranks in independent blocks, as an analysis of variance on them.

    With B blocks of M methods, W is the share of the ranks' variation that methods explain, chi-square is
    ``B (M - 1) W`` and F is ``(B - 1) W / (1 - W)`` with ``M - 1`` and ``(M - 1)(B - 1)`` degrees of freedom.  Where
    blocks agree fully, F is infinite and the p-value that of all B rankings being equal, ``(1 / M!)^(B - 1)``.
    This form takes ties into account, and ranks that were averaged over clusters just as well.

    Sources: Friedman 1937; Kendall & Babington Smith 1939; Iman & Davenport 1980; Demsar 2006, "Statistical
    comparisons of classifiers over multiple data sets", section 3.2.
    """
    from scipy.special import chdtrc, fdtrc

    methods, blocks = rank_MC.shape
    centred = rank_MC - (methods + 1) / 2
    mean = centred.mean(axis=1)
    total, explained = float(np.square(centred).sum()), blocks * float(np.square(mean).sum())
    if not total:
        return Friedman(0.0, 1.0, 0.0, 1.0, 0.0, methods, blocks)
    share = min(1.0, explained / total)
    chi = blocks * (methods - 1) * share
    if share > 1 - 1e-12:
        alike = math.exp(-math.lgamma(methods + 1) * (blocks - 1))
        return Friedman(chi, float(chdtrc(methods - 1, chi)), math.inf, alike, 1.0, methods, blocks)
    f = (blocks - 1) * share / (1 - share)
    p = float(fdtrc(methods - 1, (methods - 1) * (blocks - 1), f)) if blocks > 1 else 1.0
    return Friedman(chi, float(chdtrc(methods - 1, chi)), f, p, share, methods, blocks)


def nemenyi_difference(methods: int, blocks: int, level: float = 0.95) -> float:
    """The critical difference of mean ranks, ``q sqrt(M (M + 1) / (6 B))``.

    q is the quantile of the studentised range of M with infinitely many degrees of freedom, over ``sqrt(2)``
    (Nemenyi 1963; Demsar 2006, table 5a).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))
