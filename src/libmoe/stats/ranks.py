"""How stable the order of methods is: mean ranks over seeds and tasks, and who would be first another time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats.friedman import block_ranks, friedman

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rank:
    """One method's mean rank over all blocks (1 is the best), its interval and how often it comes first."""

    method: str
    mean: float
    low: float
    high: float
    first: float


@dataclass(frozen=True)
class RankStability:
    """The order of methods over seeds and tasks.

    Attributes:
        ranks: best first.
        concordance_of_seeds: Kendall's W of the seeds' rankings by mean score, and of the tasks' likewise; 1 if all
            agree, NaN of one.
        tau_of_seeds: Kendall's tau-b, averaged over pairs of seeds; NaN of one seed, or if a seed ranks nothing.
    """

    ranks: tuple[Rank, ...]
    concordance_of_seeds: float
    concordance_of_tasks: float
    tau_of_seeds: float


def rank_stability(
    methods: Sequence[str],
    score_MST: Floats,
    *,
    lower_is_better: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> RankStability:
    """Rank methods in every block of seed x task, and ask what ranks other seeds and tasks would have given.

    Seeds and tasks are drawn with replacement, independently of each other and whole (Owen 2007, "The pigeonhole
    bootstrap", arXiv 0712.1111), because blocks of one seed share their run and blocks of one task their text.
    Deviations are widened by ``sqrt(n / (n - 1))``, what a bootstrap of n lacks in variance.  ``first`` is the share
    of draws in which a method has the best mean rank; methods that tie share it.

    Args:
        score_MST: one score per method, seed and task (or domain).

    Raises:
        DataError: names that do not fit, fewer than two methods, nothing scored, or scores that are not finite.
    """
    if score_MST.ndim != 3 or len(set(methods)) != len(score_MST):
        raise DataError(
            f"scores of shape {score_MST.shape} must be [methods, seeds, tasks] of {len(methods)} names"
        )
    count, seeds, tasks = score_MST.shape
    rank_MST = block_ranks(score_MST.reshape(count, -1), lower_is_better=lower_is_better).reshape(
        score_MST.shape
    )
    rng = np.random.default_rng(seed)
    weight_BS, weight_BT = _weights(seeds, resamples, rng), _weights(tasks, resamples, rng)
    mean_BM = np.einsum("mst,bs,bt->bm", rank_MST, weight_BS, weight_BT, optimize=True)
    best_BM = mean_BM <= mean_BM.min(axis=1, keepdims=True) + 1e-9
    first_M = (best_BM / best_BM.sum(axis=1, keepdims=True)).mean(axis=0)
    low_M, high_M = np.quantile(mean_BM, [(1 - level) / 2, (1 + level) / 2], axis=0).clip(1, count)
    mean_M = rank_MST.mean(axis=(1, 2))
    by_seed = block_ranks(score_MST.mean(axis=2), lower_is_better=lower_is_better)
    by_task = block_ranks(score_MST.mean(axis=1), lower_is_better=lower_is_better)
    return RankStability(
        ranks=tuple(
            Rank(methods[m], float(mean_M[m]), float(low_M[m]), float(high_M[m]), float(first_M[m]))
            for m in np.argsort(mean_M, kind="stable")
        ),
        concordance_of_seeds=friedman(by_seed).concordance if seeds > 1 else math.nan,
        concordance_of_tasks=friedman(by_task).concordance if tasks > 1 else math.nan,
        tau_of_seeds=_mean_tau(by_seed),
    )


def _weights(count: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How much each of ``count`` weighs in every draw, ``[B, count]``; rows add up to 1."""
    weight = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    return 1 / count + (weight - 1 / count) * math.sqrt(count / max(1, count - 1))


def _mean_tau(rank_MS: Floats) -> float:
    """Mean of Kendall's tau-b (1945) over pairs of columns: the correlation of who beats whom."""
    i, j = np.triu_indices(len(rank_MS), 1)
    wins_PS = np.sign(rank_MS[i] - rank_MS[j])
    norm_S = np.linalg.norm(wins_PS, axis=0)
    if rank_MS.shape[1] < 2 or not norm_S.all():
        return math.nan
    wins_PS = wins_PS / norm_S
    return float(np.mean([wins_PS[:, a] @ wins_PS[:, b] for a, b in combinations(range(len(norm_S)), 2)]))
