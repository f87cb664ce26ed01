"""How much the expert tells about something else: a domain, a token id, a position, a time step, a class.

``count_GN`` holds assignments by group and expert.  Entropies are in nats, informations in bits where the name says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.balance import entropy, surprise
from libmoe.core.errors import DataError

Floats = NDArray[np.float64]


def profiles(count_GN: ArrayLike) -> Floats:
    """Share of each group's assignments on each expert, rows that sum to 1 (OpenMoE, arXiv 2402.01739 §4; a routing
    heat map where groups are classes, arXiv 2410.15732).  Rows of groups without assignments are NaN."""
    count = _checked(count_GN)
    total_G = count.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        share: Floats = count / total_G
    return share


def mutual_information(count_GN: ArrayLike) -> float:
    """Mutual information of group and expert in nats: 0 when independent, ``H(expert)`` when the group decides."""
    count = _checked(count_GN)
    total = count.sum()
    if not total:
        return 0.0
    joint = count / total
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return max(0.0, float((joint[used] * np.log(joint[used] / outer[used])).sum()))


def chance_information(count_GN: ArrayLike) -> float:
    """Mutual information that independent assignments in these numbers would show on average, in nats.

    Few observations look informative.  First-order bias ``(G - 1)(N - 1) / 2n`` over groups and experts that occur
    (Miller 1955), n being the number of assignments.
    """
    count = _checked(count_GN)
    groups, experts = int((count.sum(1) > 0).sum()), int((count.sum(0) > 0).sum())
    total = float(count.sum())
    return max(0, groups - 1) * max(0, experts - 1) / (2 * total) if total else 0.0


def explained(count_GN: ArrayLike, corrected: bool = True) -> float:
    """Share of the expert's entropy that the group explains, ``I(group; expert) / H(expert)``, in [0, 1].

    1 for a router that looks at the group alone (a hash of token ids, with groups of token ids), 0 for one that ignores
    it.  NaN when a single expert is used.

    Args:
        corrected: subtract what chance would show, :func:`chance_information`.
    """
    count = _checked(count_GN)
    whole = entropy(count.sum(0))
    if whole < 1e-12:
        return float("nan")
    chance = chance_information(count) if corrected else 0.0
    if chance >= whole:
        return 0.0
    return float(np.clip((mutual_information(count) - chance) / (whole - chance), 0.0, 1.0))


def dispatch_entropy(count_GN: ArrayLike) -> float:
    """Entropy of the groups among an expert's assignments, weighted by the experts' loads, in nats.

    0: every expert serves one group; ln G: experts tell nothing (arXiv 2208.02813 §5, with groups being clusters).
    """
    count = _checked(count_GN)
    total_N = count.sum(0)
    entropy_N = surprise(count / np.maximum(total_N, 1e-30)).sum(0)
    return float((entropy_N * total_N).sum() / max(total_N.sum(), 1e-30))


def shuffled(count_GN: ArrayLike, draws: int = 200, seed: int = 0) -> Floats:
    """Mutual information in nats after shuffling which assignment belongs to which group: the baseline of a test.

    Each draw keeps both margins (a random contingency table).
    """
    from scipy.stats import random_table

    count = _checked(count_GN)
    count = count[count.sum(1) > 0][:, count.sum(0) > 0].astype(np.int64)
    if not count.size:
        return np.zeros(draws)
    tables = random_table(count.sum(1), count.sum(0), seed=seed).rvs(
        draws, method="patefield" if count.sum() < 1e6 else None
    )
    return np.array([mutual_information(table) for table in tables])


def jensen_shannon(p_XN: ArrayLike, q_XN: ArrayLike) -> Floats:
    """Jensen-Shannon divergence in nats over the last axis: 0 for equal proportions, at most ln 2.

    Lin 1991 (IEEE Trans. Inf. Theory 37.1, eq. 3.1).  Its square root is the distance, which is a metric; both order
    histograms alike.  Arguments are counts or shares.
    """
    from scipy.special import rel_entr

    p, q = (np.asarray(each, dtype=np.float64) for each in (p_XN, q_XN))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle = (p + q) / 2
    return np.maximum((rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2, 0.0)  # rounding may pass 0


def group_entropy(count_GN: ArrayLike) -> Floats:
    """Entropy of each group's profile in nats, ``[G]``; low for a group that few experts serve, NaN without any."""
    entropy_G: Floats = surprise(profiles(count_GN)).sum(1)
    return entropy_G


def normalised_group_entropy(count_GN: ArrayLike) -> Floats:
    """The same over its maximum ln N."""
    entropy_G = group_entropy(count_GN)
    return entropy_G / np.log(max(np.shape(count_GN)[1], 2))


def _checked(count_GN: ArrayLike) -> Floats:
    count = np.asarray(count_GN, dtype=np.float64)
    if count.ndim != 2 or not np.isfinite(count).all() or (count < 0).any():
        raise DataError(f"counts of shape {count.shape}: must be [groups, experts], none negative")
    return count
