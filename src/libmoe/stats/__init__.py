"""Statistics of scores: means with clustered errors, paired differences, corrections for many comparisons.

Everything here takes and returns plain numbers and numpy arrays; it knows nothing of models or tasks.
"""

from __future__ import annotations

from libmoe.stats.bootstrap import Interval, bootstrap
from libmoe.stats.means import Mean, clustered_mean
from libmoe.stats.multiple import holm
from libmoe.stats.paired import Paired, Pairs, paired, paired_average
from libmoe.stats.permutation import SignFlip, exchange_test, sign_flip
from libmoe.stats.power import detectable_difference

__all__ = [
    "Interval",
    "Mean",
    "Paired",
    "Pairs",
    "SignFlip",
    "bootstrap",
    "clustered_mean",
    "detectable_difference",
    "exchange_test",
    "holm",
    "paired",
    "paired_average",
    "sign_flip",
]
