"""The methods of a summary: who is the baseline, and what people call methods and budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from libmoe.report.numbers import listing

Summary = dict[str, Any]
"""What :func:`libmoe.report.summarise` returns."""
Method = dict[str, Any]
"""An entry of its ``methods``."""

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


def baseline_of(methods: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The dense method that the others are compared with."""
    return next((method for method in methods if method["is_baseline"]), None)


def label_of(summary: Summary, method: str) -> str:
    """The label of a method that finished or failed, else its own name."""
    known = [*summary["methods"], *summary["failed"]]
    return next((entry["label"] for entry in known if entry["method"] == method), method)


def budget_words(summary: Summary, budget: str) -> str:
    """``active_params equal to dense`` for people."""
    quantities, _, to = budget.partition(" equal to ")
    names = [QUANTITIES.get(name, name.replace("_", " ")) for name in quantities.split(" + ")]
    return f"{listing(names)} of {label_of(summary, to)}" if to else budget.replace("_", " ").strip()
