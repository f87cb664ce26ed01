"""Can the comparison be believed?  What it could have seen, how stable the order is, and which groups stay together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from libmoe.report.compare import seed_scatter
from libmoe.report.load import Grid
from libmoe.report.pairs import Group, compare_all, detectable, group, named_families
from libmoe.report.units import Evaluations
from libmoe.report.values import number
from libmoe.stats import critical_difference, rank_stability

FAR = 1000
"""More seeds than this are told as out of reach."""


def belief(
    grid: Grid, evaluations: Evaluations, methods: Sequence[dict[str, Any]], comparisons: int
) -> dict[str, Any] | None:
    """What the runs that are complete tell of the whole comparison; ``None`` where fewer than two methods are.

    Returns:
        ``detectable``; ``needed`` (seeds it would take to see each undecided difference); ``ranks`` with
        ``concordance_of_seeds``, ``tau_of_seeds`` and ``concordance_of_domains``; ``critical``, the data of a
        critical-difference diagram; and everything :func:`compare_all` tells.
    """
    names = [method["method"] for method in methods if method["causal"]]
    found = group(grid.ranked, evaluations, names, seed_scatter(grid.ranked))
    if found is None:
        return None
    domains, score_MSD = found.domain_scores()
    stable = rank_stability(found.methods, score_MSD, lower_is_better=True)
    return {
        **compare_all(found),
        "left_out": [name for name in names if name not in found.methods],
        "detectable": detectable(found, comparisons, _typical(found)),
        "needed": _needed(found, methods, comparisons),
        "ranks": [rank.__dict__ for rank in stable.ranks],
        "domains": len(domains),
        "concordance_of_seeds": number(stable.concordance_of_seeds),
        "concordance_of_domains": number(stable.concordance_of_tasks),
        "tau_of_seeds": number(stable.tau_of_seeds),
        "critical": _critical(found, score_MSD),
    }


def families(
    grid: Grid, evaluations: Evaluations, methods: Sequence[dict[str, Any]], notes: list[str]
) -> list[dict[str, Any]]:
    """For each of the protocol's families: do its members differ?"""
    pool = seed_scatter(grid.ranked)
    causal = {method["method"] for method in methods if method["causal"]}
    answers = []
    for name, keys in named_families(grid.protocol, notes).items():
        found = group(grid.ranked, evaluations, [key for key in keys if key in causal], pool)
        if found is None:
            notes.append(f"Family {name}: fewer than two of its members finished a common seed.")
            continue
        answer = compare_all(found)
        answers.append(
            {
                "name": name,
                **answer,
                "left_out": [key for key in keys if key not in found.methods],
                "detectable": detectable(found, len(answer["pairs"]), _typical(found)),
            }
        )
    return answers


def _typical(found: Group) -> float:
    return float(np.median(found.held.units.mean(found.value_MSU)))


def _needed(found: Group, methods: Sequence[dict[str, Any]], comparisons: int) -> list[dict[str, Any]]:
    """Seeds with which each difference that is still undecided would be seen, were it the true one."""
    model = found.resolution()
    if model is None:
        return []
    told = []
    for method in methods:
        if method["verdict"] in ("indistinguishable", "maybe better", "maybe worse"):
            size = abs(method["difference"]["mean"])
            seeds = (
                model.seeds_needed(size, found.clusters, comparisons=max(1, comparisons)) if size else None
            )
            reach = seeds if seeds is not None and seeds <= FAR else None
            entry = {"method": method["method"], "difference": method["difference"]["mean"], "seeds": reach}
            told.append(entry)
    return told


def _critical(found: Group, score_MSD: np.ndarray) -> dict[str, Any]:
    """Mean ranks over seeds and domains, and Nemenyi's critical difference with seeds as blocks."""
    methods, seeds, domains = score_MSD.shape
    told = critical_difference(
        found.methods,
        score_MSD.reshape(methods, -1),
        clusters=[seed for seed in found.seeds for _ in range(domains)],
        lower_is_better=True,
    )
    return {
        "mean_rank": told.mean_rank,
        "reach": told.difference,
        "friedman_p": told.friedman.f_p,
        "concordance": told.friedman.concordance,
        "blocks": seeds,
    }
