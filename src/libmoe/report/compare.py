"""Compare every method with the dense baseline: difference, interval, corrected p-value and verdict.

Two methods of one grid are compared on the *same* held-out text and the *same* seeds (a seed fixes the data order and
the initialisation of shared weights), so every statistic here is one of the difference, never of two separate means:
:func:`libmoe.stats.crossed_bootstrap`, with documents as clusters, domains as strata and bytes as weights.  With one
seed for all methods nothing is known of other seeds: the interval then covers the choice of text only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from libmoe.report.load import Grid, Row
from libmoe.report.naming import baseline_of
from libmoe.report.units import Evaluations
from libmoe.report.values import number
from libmoe.stats import Crossed, Scatter, crossed_bootstrap, holm, largest_block, pooled_scatter
from libmoe.stats.means import student

LEVEL = 0.05
"""Chance of any false claim among all comparisons with the baseline (Holm)."""
DRIFT = 1e-3
"""Bits per byte by which the held-out units may miss the reported value before the report says so."""


def compare(
    grid: Grid,
    evaluations: Evaluations,
    methods: Sequence[dict[str, Any]],
    baseline: str | None,
    notes: list[str],
) -> dict[str, Any]:
    """Add ``difference``, ``verdict`` and ``seed_half_width`` to each method; return how they were computed.

    Verdicts: ``baseline``; ``better`` and ``worse`` (interval excludes zero, and still after Holm's
    correction); ``maybe better`` and ``maybe worse`` (before the correction only); ``indistinguishable``;
    ``not compared`` (no baseline, no common seed, nothing to resample, or it sees future tokens).  Where seeds were
    added until methods were decided, verdicts (``equivalent`` among them) and intervals are those of the plan's looks:
    an interval that ignores them would be wrong more often than it says.
    """
    pool = seed_scatter(grid.ranked)
    rivals = [method for method in methods if not method["is_baseline"]]
    resamples = max(2000, 200 * len(rivals))  # the strictest level of the correction is five draws wide
    found: dict[str, Crossed] = {}
    for method in rivals if baseline is not None else ():
        name = method["method"]
        rows = [row for row in grid.finished if row.method in (name, baseline)]
        seeds = sorted({row.seed for row in rows if row.method == baseline}.intersection(method["seeds"]))
        if not seeds:
            notes.append(f"{method['label']}: finished no seed that the baseline finished, so not compared.")
            continue
        held = evaluations.shared(rows)
        gain = held.gain(name, str(baseline), seeds)
        found[name] = crossed_bootstrap(gain, held.units, pool=pool, resamples=resamples)
        method["difference"] = entry(found[name], held.kind, seeds)
    claims = [m["method"] for m in rivals if m["causal"] and m["method"] in found]
    corrected = holm({name: found[name].p_value for name in claims if math.isfinite(found[name].p_value)})
    for method in methods:
        difference = method.setdefault("difference", None)
        if difference:
            difference["p_corrected"] = corrected.get(method["method"])
        method["verdict"] = "baseline" if method["is_baseline"] else verdict(difference)
        method["seed_half_width"] = _half_width(pool, len(method["seeds"]))
    looks = _sequential(methods, grid.protocol)
    _note_drift(methods, notes)
    differences = [method["difference"] for method in methods if method["difference"]]
    return {
        "units": sorted({difference["unit"] for difference in differences}),
        "num_units": max((difference["clusters"] for difference in differences), default=0),
        "equal_domains": evaluations.equal_domains,
        "replicates": resamples,
        "comparisons": len(corrected),
        "sequential": looks,
        "seed_sigma": pool.sigma if pool else None,
        "seed_degrees_of_freedom": pool.freedom if pool else 0,
    }


def seed_scatter(rows: Iterable[Row], domain: str | None = None) -> Scatter | None:
    """Seed-to-seed scatter of one run's bits per byte (of one domain), pooled over methods.

    Returns ``None`` when fewer than two methods or two seeds are complete.
    """
    score = {
        (row.method, row.seed): value
        for row in rows
        if (value := row.bits_per_byte if domain is None else row.domains.get(domain)) is not None
    }
    finished: dict[str, list[int]] = {}
    for method, seed in score:
        finished.setdefault(method, []).append(seed)
    methods, seeds = largest_block(finished)
    if len(methods) < 2 or len(seeds) < 2:
        return None
    return pooled_scatter(np.array([[score[method, seed] for seed in seeds] for method in methods]))


def entry(found: Crossed, unit: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A difference as the summary holds it; what is not known is ``None``."""
    return {
        "mean": found.difference,
        **{name: number(getattr(found, name)) for name in ("low", "high", "stderr", "p_value")},
        "freedom": found.freedom,
        "p_corrected": None,
        "by_seed": dict(zip(seeds, found.per_seed, strict=True)),
        "unit": unit,
        "clusters": found.clusters,
        "covers": found.covers,
    }


def verdict(difference: Mapping[str, Any] | None) -> str:
    """What a difference with its interval and corrected p-value lets one say."""
    if difference is None or difference["p_corrected"] is None:
        return "not compared"
    side = "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else None
    if side is None:
        return "indistinguishable"
    return side if difference["p_corrected"] < LEVEL else f"maybe {side}"


BY_LOOK = {"better": "better", "worse": "worse", "equivalent within margin": "equivalent"}


def _sequential(methods: Iterable[dict[str, Any]], protocol: Mapping[str, Any]) -> bool:
    """Take over what the looks of a sequential plan decided; returns whether there were any."""
    until = protocol.get("until")
    taken = until.get("taken") if isinstance(until, dict) else None
    if not isinstance(taken, dict) or not any(taken.values()):
        return False
    for method in methods:
        looks = [look for look in taken.get(method["method"]) or () if isinstance(look, dict)]
        if looks and "level" in looks[-1] and method["difference"]:
            method["look"] = looks[-1]
            method["difference"].update(low=looks[-1].get("low"), high=looks[-1].get("high"))
            method["verdict"] = BY_LOOK.get(str(looks[-1].get("verdict")), "indistinguishable")
    return True


def _half_width(pool: Scatter | None, seeds: int) -> float | None:
    """95 % half-width of a mean over ``seeds`` runs, from the pooled scatter of seeds."""
    return student(0.95, pool.freedom) * pool.sigma / math.sqrt(seeds) if pool else None


def _note_drift(methods: Iterable[Mapping[str, Any]], notes: list[str]) -> None:
    """Say so when differences of held-out units and of reported means disagree."""
    methods = list(methods)
    reported = {method["method"]: method["bits_per_byte_by_seed"] for method in methods}
    baseline = baseline_of(methods)
    base: dict[int, float] = baseline["bits_per_byte_by_seed"] if baseline else {}
    for method in methods:
        if (difference := method["difference"]) is None:
            continue
        seeds = difference["by_seed"]
        plain = sum(reported[method["method"]][seed] - base[seed] for seed in seeds) / len(seeds)
        if abs(plain - difference["mean"]) > DRIFT:
            notes.append(
                f"{method['label']}: its difference to the baseline is {difference['mean']:+.4f} from held-out "
                f"{difference['unit']} but {plain:+.4f} from the reported bits per byte; the former is shown."
            )
