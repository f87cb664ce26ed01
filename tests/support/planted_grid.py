"""A grid in memory with planted differences, for tests that need many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from libmoe.report.load import Grid, Row, Run

DOMAINS = ("code", "legal", "novel", "speech")


def row(method: str, seed: int, score: float, domains: dict[str, float], **other: Any) -> Row:
    values: dict[str, Any] = {
        "method": method, "label": method, "kind": "dense" if method == "dense" else "moe", "paper": None, "seed": seed,
        "ok": True, "error": "", "causal": True, "bits_per_byte": score, "best_bits_per_byte": score, "costs": {},
        "domains": domains, "tasks": {}, "notes": (), "tuning": {},
    }  # fmt: skip
    return Row(**values | other)


def planted_grid(
    rng: np.random.Generator,
    gains: dict[str, float],
    *,
    seeds: int = 3,
    windows: int = 16,
    per_document: int = 4,
    seed_noise: float = 0.005,
    document_noise: float = 0.03,
    documents: bool = True,
    protocol: dict[str, Any] | None = None,
) -> Grid:
    """Every method is its gain away from the others' level, seen through seeds and through documents of windows."""
    size_DW = rng.integers(300, 600, (len(DOMAINS), windows)).astype(float)
    text_DW = rng.normal(1.8, 0.3, (len(DOMAINS), 1)) + rng.normal(0, 0.2, size_DW.shape)
    common_S = rng.normal(0, 0.03, seeds)
    rows, runs = [], {}
    for method, gain in gains.items():
        taste = rng.normal(0, document_noise, (len(DOMAINS), windows // per_document))
        taste_DW = np.repeat(taste, per_document, axis=1) + rng.normal(0, 0.01, size_DW.shape)
        for seed in range(seeds):
            luck_DW = rng.normal(0, seed_noise) + rng.normal(0, 0.01, size_DW.shape)
            bits_DW = (text_DW + taste_DW + common_S[seed] + luck_DW + gain) * size_DW
            by_domain = dict(zip(DOMAINS, (bits_DW.sum(1) / size_DW.sum(1)).tolist(), strict=True))
            rows.append(row(method, seed, float(bits_DW.sum() / size_DW.sum()), by_domain))
            evaluation: dict[str, Any] = {
                "windows": {
                    name: np.stack([bits_DW[d], size_DW[d]], axis=1).tolist()
                    for d, name in enumerate(DOMAINS)
                }
            }
            if documents:
                numbers = [w // per_document for w in range(windows)]
                evaluation["window_documents"] = dict.fromkeys(DOMAINS, numbers)
            runs[method, seed] = Run([], evaluation)
    return Grid(Path("planted"), protocol or {}, rows, runs)


def methods_of(grid: Grid, baseline: str | None = "dense") -> list[dict[str, Any]]:
    """What a summary holds of each method before anything is compared."""
    names = list(dict.fromkeys(row.method for row in grid.finished))
    return [
        {
            "method": name,
            "label": name,
            "is_baseline": name == baseline,
            "causal": all(row.causal for row in grid.finished if row.method == name),
            "seeds": [row.seed for row in grid.finished if row.method == name],
            "bits_per_byte_by_seed": {
                row.seed: row.bits_per_byte for row in grid.finished if row.method == name
            },
        }
        for name in names
    ]
