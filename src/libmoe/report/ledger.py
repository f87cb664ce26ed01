"""What everything cost: one line an entry, and the sum of all that was spent, failed cells included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libmoe.report.load import Grid, Row, Run
from libmoe.report.values import number

SPENT = ("train_flops", "train_seconds")


def add_costs(grid: Grid, methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add ``tuning`` and ``spent`` to each method; return what was spent in all.

    ``spent`` sums training FLOPs and seconds over all seeds and the tuning; so does the total, which adds what failed
    cells got through before they failed.  A failed cell left no row of costs: its tokens are those of its last logged
    step, at the FLOPs a token of the entry's finished cells, and its seconds are the last that were timed.
    """
    total = {
        "runs": len(grid.rows),
        "failed": 0,
        **dict.fromkeys(SPENT, 0.0),
        "tuning_flops": 0.0,
        "tuning_seconds": 0.0,
    }
    unknown = 0
    per_token = {
        row.method: row.costs["train_flops"] / row.costs["tokens"]
        for row in grid.finished
        if row.costs.get("tokens") and "train_flops" in row.costs
    }
    spent_by: dict[str, dict[str, float]] = {}
    for row in grid.rows:
        spent = row.costs if row.ok else _of_failed(row, grid.runs[row.method, row.seed], per_token)
        total["failed"] += not row.ok
        unknown += not row.ok and "train_flops" not in spent
        mine = spent_by.setdefault(row.method, dict.fromkeys(SPENT, 0.0))
        for name in SPENT:
            mine[name] += spent.get(name, 0.0)
    tuned = {
        row.method: row.tuning for row in grid.rows if row.tuning
    }  # every cell of an entry says the same
    for name, tuning in tuned.items():
        total["tuning_flops"] += (flops := number(tuning.get("train_flops")) or 0.0)
        total["tuning_seconds"] += (seconds := number(tuning.get("train_seconds")) or 0.0)
        spent_by[name]["train_flops"] += flops
        spent_by[name]["train_seconds"] += seconds
    for name in SPENT:
        total[name] = sum(spent[name] for spent in spent_by.values())
    for method in methods:
        method["tuning"] = tuned.get(method["method"])
        method["spent"] = spent_by[method["method"]]
    return total | {"unknown": unknown}


def _of_failed(row: Row, run: Run, per_token: Mapping[str, float]) -> dict[str, float]:
    spent = {name: row.costs[name] for name in SPENT if name in row.costs}
    tokens = max((number(step.get("tokens")) or 0.0 for step in run.metrics), default=0.0)
    if "train_flops" not in spent and row.method in per_token and tokens:
        spent["train_flops"] = tokens * per_token[row.method]
    if "train_seconds" not in spent and run.seconds:
        spent["train_seconds"] = run.seconds
    return spent
