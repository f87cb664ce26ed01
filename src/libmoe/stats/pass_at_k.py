"""What k attempts are worth, estimated without bias from n >= k samples: pass@k and majority vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np

from libmoe.stats.means import Mean, clustered_mean


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that at least one of ``k`` samples passes: ``1 - C(n - c, k) / C(n, k)``.

    The mean over all subsets of k of the n samples, of which c passed, hence without bias (Chen et al. 2021, arXiv
    2107.03374, equation 1).  The ratio of binomials is a product of min(c, k) factors, added up as logarithms, so that
    neither large n nor a tiny probability loses digits.

    Args:
        samples: n, how many were drawn.
        passed: c, how many of them passed.

    Raises:
        ValueError: not ``0 <= passed <= samples``, or not ``1 <= k <= samples``.
    """
    _check(samples, k)
    if not 0 <= passed <= samples:
        raise ValueError(f"passed={passed} of {samples} samples is impossible")
    if samples - passed < k:
        return 1.0
    # C(n - c, k) / C(n, k) is symmetric in c and k: the smaller of them decides how many factors there are.
    few, many = min(passed, k), max(passed, k)
    return float(-np.expm1(np.log1p(-many / (samples - np.arange(few))).sum()))


def mean_pass_at_k(
    samples: Sequence[int], passed: Sequence[int], k: int, clusters: Sequence[Hashable] | None = None
) -> Mean:
    """Mean pass@k over problems, with an interval over problems.

    Args:
        samples, passed: n and c of each problem.
        clusters: which problems belong together (parts of one exercise); ``None``: each is on its own.

    Raises:
        ValueError: no problems, or one with fewer than k samples.
    """
    return clustered_mean([pass_at_k(n, c, k) for n, c in zip(samples, passed, strict=True)], clusters)


def majority_vote(votes: Sequence[Hashable], right: Collection[Hashable], k: int) -> float:
    """Expected accuracy of the most frequent answer among ``k`` of the given samples (self-consistency).

    The mean over all subsets of k samples, computed exactly.  Answers that tie for the most votes win equally often.
    ``None`` is a sample from which no answer could be taken: it does not vote, and where nobody votes nothing is right.

    Counts of answers in a subset are multivariate hypergeometric, that is, independent binomials of probability k/n
    given that they add up to k; in this form all terms are probabilities and nothing overflows.

    Args:
        votes: the answer of each sample.
        right: answers that are right.

    Raises:
        ValueError: not ``1 <= k <= len(votes)``.
    """
    from scipy.stats import binom

    _check(len(votes), k)
    share = k / len(votes)
    counts = Counter(votes)
    chances = {a: binom.pmf(np.arange(min(c, k) + 1), c, share) for a, c in counts.items()}
    silent = chances.pop(None, np.ones(1))
    total = sum(
        chance * _wins(size, k, silent, [p for other, p in chances.items() if other != answer])
        for answer in set(right) & set(chances)
        for size, chance in enumerate(chances[answer])
        if size
    )
    return float(total / binom.pmf(k, len(votes), share))


def _wins(size: int, k: int, silent: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Probability that the others fill ``k - size`` places and none has more than ``size``; a tie counts its share."""
    width = k - size + 1
    ways = np.zeros((k // size + 1, width))  # how many tie at the top x how many places are filled
    ways[0, : len(silent)] = silent[:width]
    for chances in others:
        more = np.zeros_like(ways)
        for count, chance in enumerate(chances[:size][:width]):
            more[:, count:] += chance * ways[:, : width - count]
        if len(chances) > size and width > size:
            more[1:, size:] += chances[size] * ways[:-1, : width - size]
        ways = more
    return float((ways[:, -1] / np.arange(1, len(ways) + 1)).sum())


def mean_majority_vote(
    votes: Sequence[Sequence[Hashable]],
    right: Sequence[Collection[Hashable]],
    k: int,
    clusters: Sequence[Hashable] | None = None,
) -> Mean:
    """Mean accuracy of a majority vote of ``k`` samples over problems, with an interval over problems.

    Args:
        votes: for each problem the answer of each sample.
        right: for each problem the answers that are right.
        clusters: as for :func:`mean_pass_at_k`.
    """
    return clustered_mean([majority_vote(v, r, k) for v, r in zip(votes, right, strict=True)], clusters)


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must lie between 1 and the number of samples, {samples}")
