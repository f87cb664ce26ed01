"""How strict each look at growing data must be, so that all looks together keep one level.

A level is that of a two-sided t test: a look may claim what has a p-value below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

PATHS = 1 << 20
"""Simulated experiments; the total of all looks is then right to two in ten thousand."""


@lru_cache(maxsize=256)
def spent_levels(looks: tuple[int, ...], most: int, alpha: float, spending: str) -> tuple[float, ...]:
    """Levels of t tests after ``looks`` seeds, by alpha spending (Lan & DeMets 1983, Biometrika 70).

    After a share f of the ``most`` seeds, so much of ``alpha`` may have been spent:

    * ``obrien-fleming``: ``4 Phi(z_{alpha/4} / sqrt(f))``, hardly anything early, nearly everything at the end;
    * ``pocock``: ``alpha ln(1 + (e - 1) f)``, about as much at every look.

    The usual levels come from Brownian motion and are up to a fifth too generous for t tests of few seeds, so
    experiments with independent normal differences are simulated and each look's level set to spend its share.  The
    levels depend on looks up to their own only; later ones may be added, moved or dropped.  An error of the
    difference that stays the same at all looks (the held-out text) makes looks more alike, which only lowers the
    total; so do degrees of freedom beyond ``seeds - 1`` from a pooled scatter.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    share = np.asarray(looks) / most
    if spending == "obrien-fleming":
        budget = 4 * ndtr(ndtri(alpha / 4) / np.sqrt(share))
    else:
        budget = alpha * np.log1p((math.e - 1) * share)
    rng = np.random.default_rng(0)
    total, squares = np.zeros(PATHS), np.zeros(PATHS)
    going = np.ones(PATHS, dtype=bool)
    levels: list[float] = []
    for seeds, step, allowed in zip(looks, np.diff(looks, prepend=0), budget, strict=True):
        fresh = rng.standard_normal(PATHS)  # the new seeds' sum; what they scatter about it is chi-square
        total += math.sqrt(step) * fresh
        squares += np.square(fresh) + (rng.chisquare(step - 1, PATHS) if step > 1 else 0.0)
        around = squares - np.square(total) / seeds
        t = np.abs(total) * np.sqrt((seeds - 1) / (seeds * around))
        if levels:
            stops = int(PATHS * allowed) - int(PATHS - going.sum())
            bound = float(np.partition(t[going], -stops - 1)[-stops - 1]) if stops > 0 else math.inf
            levels.append(float(2 * stdtr(seeds - 1, -bound)))
        else:
            bound = float(stdtrit(seeds - 1, 1 - allowed / 2))
            levels.append(float(allowed))
        going &= t <= bound
    return tuple(levels)


def anytime_levels(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Levels that hold for any looks whatever, without an end in sight.

    The Bayes factor of a normal effect, of variance 1 in units of the scatter, against none is a martingale where
    there is none, so that it ever exceeds ``1 / alpha`` with probability ``alpha`` at most (Ville 1939).  For n
    normal differences with t statistic t and r = 1 + n it is
    ``r^(-1/2) ((1 + t^2 / (n - 1)) / (1 + t^2 / (r (n - 1))))^(n / 2)`` (Gronau, Ly & Wagenmakers 2020, arXiv
    1704.02479; its validity at any time, Wang & Ramdas 2023, arXiv 2310.03722).  A level of 0 can never be met.
    """
    from scipy.special import stdtr

    levels = []
    for seeds in looks:
        ratio = (math.sqrt(1 + seeds) / alpha) ** (2 / seeds)
        within = 1 - ratio / (1 + seeds)
        t = math.sqrt((seeds - 1) * (ratio - 1) / within) if within > 0 else math.inf
        levels.append(float(2 * stdtr(seeds - 1, -t)))
    return tuple(levels)
