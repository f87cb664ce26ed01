"""Statistics of scores: means with clustered errors, paired differences, corrections for many comparisons.

Everything here takes and returns plain numbers and numpy arrays; it knows nothing of models or tasks.
"""

from __future__ import annotations

from libmoe.stats.bootstrap import Interval, bootstrap
from libmoe.stats.cliques import CriticalDifference, cliques, critical_difference
from libmoe.stats.crossed import Crossed, crossed_bootstrap, crossed_t
from libmoe.stats.crossed_flip import CrossedFlip, crossed_flip
from libmoe.stats.friedman import Friedman, block_ranks, friedman, nemenyi_difference
from libmoe.stats.means import Mean, clustered_mean
from libmoe.stats.multiple import holm
from libmoe.stats.omnibus import CrossedF, crossed_f
from libmoe.stats.paired import Paired, Pairs, paired, paired_average
from libmoe.stats.permutation import SignFlip, exchange_test, sign_flip
from libmoe.stats.power import detectable_difference
from libmoe.stats.ranks import Rank, RankStability, rank_stability
from libmoe.stats.resolution import Detectable, Variability, variability
from libmoe.stats.runs import Runs, Units, common_runs, largest_block
from libmoe.stats.seeds import Scatter, means_over_seeds, pooled_scatter
from libmoe.stats.sequential import Look, SequentialPlan

__all__ = [
    "CriticalDifference",
    "Crossed",
    "CrossedF",
    "CrossedFlip",
    "Detectable",
    "Friedman",
    "Interval",
    "Look",
    "Mean",
    "Paired",
    "Pairs",
    "Rank",
    "RankStability",
    "Runs",
    "Scatter",
    "SequentialPlan",
    "SignFlip",
    "Units",
    "Variability",
    "block_ranks",
    "bootstrap",
    "cliques",
    "clustered_mean",
    "common_runs",
    "critical_difference",
    "crossed_bootstrap",
    "crossed_f",
    "crossed_flip",
    "crossed_t",
    "detectable_difference",
    "exchange_test",
    "friedman",
    "holm",
    "largest_block",
    "means_over_seeds",
    "nemenyi_difference",
    "paired",
    "paired_average",
    "pooled_scatter",
    "rank_stability",
    "sign_flip",
    "variability",
]
