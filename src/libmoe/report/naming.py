"""Names of methods and budgets as people write them."""

from __future__ import annotations

from typing import Any

from libmoe.report.numbers import listing

Summary = dict[str, Any]

QUANTITIES = {
    "active_params": "the active parameters",
    "total_params": "the total parameters",
    "flops": "the FLOPs of a token's forward pass",
    "train_flops": "the FLOPs of the whole training",
    "tokens": "the training tokens",
    "wall_clock": "the time of training",
    "memory": "the memory of training",
    "parameter_equal": "active and total parameters",
    "equal_ncd": "total parameters, training FLOPs and data",
}
"""What a budget may hold equal."""


def label_of(summary: Summary, method: str) -> str:
    """The label of a method that finished or failed, else its own name."""
    known = [*summary["methods"], *summary["failed"]]
    return next((entry["label"] for entry in known if entry["method"] == method), method)


def budget_words(summary: Summary, budget: str) -> str:
    """``active_params equal to dense`` for people."""
    quantities, _, to = budget.partition(" equal to ")
    names = [QUANTITIES.get(name, name.replace("_", " ")) for name in quantities.split(" + ")]
    return f"{listing(names)} of {label_of(summary, to)}" if to else budget.replace("_", " ").strip()
