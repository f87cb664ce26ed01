"""A permutation test over seeds and clusters at once: would exchanging the two methods' runs look any different?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.stats.crossed import checked
from libmoe.stats.permutation import BATCH, SIGNS, sign_flip
from libmoe.stats.runs import Units

Floats = NDArray[np.float64]


class CrossedFlip(NamedTuple):
    """Two-sided p-values of "the two methods are alike".

    Attributes:
        p_value: for other seeds and other clusters.
        seeds: for other seeds, on this very text.
        clusters: for other clusters of text, of these very runs.
    """

    p_value: float
    seeds: float
    clusters: float


def crossed_flip(
    gain_SU: Floats, units: Units | None = None, *, resamples: int = 9999, seed: int = 0
) -> CrossedFlip:
    """Flip the signs of whole seeds, of whole clusters, and of both.

    Either flip alone is exact when the other factor does not scatter, and far too bold when it does: the larger of
    the two p-values still raises more than twice the false alarms allowed.  So the sum is compared with random signs
    of the seeds' sums *plus* random signs of the clusters' sums, whose variance is that of the difference or more
    (what varies by seed and cluster counts twice, and so does a true difference).  The p-value is the largest of the
    three.  It keeps its level everywhere, and pays for it: it takes six seeds and six clusters to reach 5 % at all.
    With fewer seeds use :func:`libmoe.stats.crossed_bootstrap` with a pooled scatter.

    Args:
        gain_SU: ``b - a`` with each seed on each unit.
        units: weights and clusters (strata change nothing); ``None``: every unit by itself, all alike.

    Raises:
        DataError: no seeds or units, or values that are not finite.

    Sources: :func:`libmoe.stats.sign_flip` for one factor; signs for every dimension of clustering as in the wild
    bootstrap of MacKinnon, Nielsen & Webb 2021, "Wild bootstrap and asymptotic inference with multiway clustering".
    """
    units = checked(gain_SU, units)
    sum_SC = units.sums(gain_SU)
    seeds, clusters = sum_SC.sum(axis=1), sum_SC.sum(axis=0)
    rng = np.random.default_rng(seed)
    drawn = _signed_sums(seeds, resamples, rng) + _signed_sums(clusters, resamples, rng)
    far = abs(sum_SC.sum()) - 1e-12 * np.abs(sum_SC).sum()
    both = (int((np.abs(drawn) >= far).sum()) + 1) / (resamples + 1)
    by_seed = sign_flip(seeds, resamples, seed).p_value
    by_cluster = sign_flip(clusters, resamples, seed).p_value
    return CrossedFlip(max(both, by_seed, by_cluster), by_seed, by_cluster)


def _signed_sums(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Sums with random signs, eight of them looked up by one random byte."""
    padded = np.zeros(-(-values.size // 8) * 8)
    padded[: values.size] = values
    table = padded.reshape(-1, 8) @ SIGNS.T
    rows, step = np.arange(len(table)), max(1, BATCH // len(table))
    sums = np.empty(resamples)
    for start in range(0, resamples, step):
        part = sums[start : start + step]
        drawn = rng.integers(256, size=(len(part), len(table)), dtype=np.uint8)
        part[:] = table[rows, drawn].sum(axis=1)
    return sums
