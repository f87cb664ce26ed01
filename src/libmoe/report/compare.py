"""Compare every method with the dense baseline: difference, interval, corrected p-value and verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from libmoe.report.intervals import Difference, SeedScatter, Units, paired_difference, seed_scatter
from libmoe.report.load import Grid, Row
from libmoe.stats import holm

LEVEL = 0.05
"""Chance of any false claim among all comparisons with the baseline (Holm)."""
DRIFT = 1e-3
"""Bits per byte by which the held-out units may miss the reported value before the report says so."""

Run = tuple[str, int]


def compare(
    grid: Grid, methods: Sequence[dict[str, Any]], baseline: str | None, notes: list[str]
) -> dict[str, Any]:
    """Add ``difference``, ``verdict`` and ``seed_half_width`` to each method; return how they were computed.

    Verdicts: ``baseline``; ``better`` and ``worse`` (interval excludes zero, and still after Holm's
    correction); ``maybe better`` and ``maybe worse`` (before the correction only); ``indistinguishable``;
    ``not compared`` (no baseline, no common seed, nothing to resample, or it sees future tokens).
    """
    causal = [
        {"method": row.method, "seed": row.seed, "bits_per_byte": row.bits_per_byte}
        for row in grid.finished
        if row.causal
    ]
    scatter = seed_scatter(causal)
    equal_domains = _weigh_domains_alike(grid)
    rivals = [method for method in methods if not method["is_baseline"]]
    n_boot = max(2000, 100 * len(rivals))
    found: dict[str, Difference] = {}
    for method in rivals if baseline is not None else ():
        units = _units(grid, [row for row in grid.finished if row.method in (method["method"], baseline)])
        if not {seed for name, seed in units if name == baseline}.intersection(method["seeds"]):
            notes.append(f"{method['label']}: finished no seed that the baseline finished, so not compared.")
            continue
        found[method["method"]] = paired_difference(
            causal, method["method"], str(baseline), units, n_boot=n_boot, equal_domains=equal_domains
        )
    corrected = holm(
        {
            method["method"]: found[method["method"]].p_value
            for method in rivals
            if method["causal"]
            and method["method"] in found
            and math.isfinite(found[method["method"]].p_value)
        }
    )
    for method in methods:
        name = method["method"]
        method["difference"] = _entry(found[name], corrected.get(name)) if name in found else None
        method["verdict"] = (
            "baseline" if method["is_baseline"] else _verdict(found.get(name), corrected.get(name))
        )
        method["seed_half_width"] = _half_width(scatter, len(method["seeds"]))
    _note_drift(methods, notes)
    return {
        "units": sorted({difference.unit for difference in found.values()}),
        "num_units": max((difference.num_units for difference in found.values()), default=0),
        "equal_domains": equal_domains,
        "replicates": n_boot,
        "comparisons": len(corrected),
        "seed_sigma": scatter.sigma if scatter else None,
        "seed_degrees_of_freedom": scatter.degrees_of_freedom if scatter else 0,
    }


def _units(grid: Grid, rows: Sequence[Row]) -> dict[Run, Units]:
    """Return the finest held-out units that these runs share: windows, else domains, else the single mean."""
    windows = {(row.method, row.seed): _windows(grid, row) for row in rows}
    sizes = [{d: table[:, 1].tolist() for d, table in run.items()} for run in windows.values()]
    if sizes and sizes[0] and all(size == sizes[0] for size in sizes):
        return dict(windows)
    shared = set.intersection(*(set(row.domains) for row in rows)) if rows else set()
    if len(shared) >= 2:
        return {(row.method, row.seed): {d: row.domains[d] for d in sorted(shared)} for row in rows}
    return {(row.method, row.seed): {"all": row.bits_per_byte} for row in rows}


def _windows(grid: Grid, row: Row) -> dict[str, np.ndarray]:
    """Return ``{domain: [windows, 2]}`` bits and bytes, or nothing unless all of it is usable."""
    content = grid.runs[row.method, row.seed].evaluation.get("windows")
    if not isinstance(content, dict):
        return {}
    try:
        tables = {str(domain): np.asarray(pairs, dtype=np.float64) for domain, pairs in content.items()}
    except (TypeError, ValueError):
        return {}
    usable = all(
        table.ndim == 2 and table.shape[1] == 2 and np.isfinite(table).all() and (table[:, 1] > 0).all()
        for table in tables.values()
    )
    return tables if usable else {}


def _weigh_domains_alike(grid: Grid) -> bool:
    """Tell from the numbers whether reported bits per byte pool all bytes or average the domains."""
    by_bytes, alike = [], []
    for row in grid.finished:
        if tables := _windows(grid, row):
            reported = row.bits_per_byte or 0.0
            bits = np.array([table[:, 0].sum() for table in tables.values()])
            size = np.array([table[:, 1].sum() for table in tables.values()])
            by_bytes.append(abs(bits.sum() / size.sum() - reported))
            alike.append(abs((bits / size).mean() - reported))
    return bool(max(alike, default=0.0) < max(by_bytes, default=0.0))


def _verdict(difference: Difference | None, corrected: float | None) -> str:
    if difference is None or corrected is None:
        return "not compared"
    side = "better" if difference.high < 0 else "worse" if difference.low > 0 else None
    if side is None:
        return "indistinguishable"
    return side if corrected < LEVEL else f"maybe {side}"


def _entry(difference: Difference, corrected: float | None) -> dict[str, Any]:
    limits = {"low": difference.low, "high": difference.high, "p_value": difference.p_value}
    return {
        "mean": difference.mean,
        **{name: value if math.isfinite(value) else None for name, value in limits.items()},
        "p_corrected": corrected,
        "by_seed": difference.per_seed,
        "unit": difference.unit,
    }


def _half_width(scatter: SeedScatter | None, seeds: int) -> float | None:
    """Return the 95 % half-width of a mean over ``seeds`` runs, from the pooled scatter of seeds."""
    if scatter is None:
        return None
    draws = np.abs(np.random.default_rng(0).standard_t(scatter.degrees_of_freedom, 100_000))
    return float(np.quantile(draws, 0.95)) * scatter.sigma / math.sqrt(seeds)


def _note_drift(methods: Iterable[Mapping[str, Any]], notes: list[str]) -> None:
    """Say so when differences of held-out units and of reported means disagree."""
    methods = list(methods)
    reported = {method["method"]: method["bits_per_byte_by_seed"] for method in methods}
    base: dict[int, float] = next(
        (method["bits_per_byte_by_seed"] for method in methods if method["is_baseline"]), {}
    )
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
