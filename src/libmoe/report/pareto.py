"""Quality against cost: which methods no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from libmoe.report.naming import Method, baseline_of


class Axis(NamedTuple):
    """A cost: its key in a method, its name, a name for files, and whether more of it is better."""

    key: str
    title: str
    file: str
    more_is_better: bool = False


AXES = (
    Axis("flops_per_token", "active FLOPs per token", "pareto_flops"),
    Axis("peak_memory_bytes", "peak memory while training, bytes", "pareto_memory"),
    Axis("train_seconds", "training wall-clock, seconds", "pareto_time"),
    Axis("inference_tokens_per_second", "inference, tokens per second", "pareto_inference", True),
)


def shown(methods: Sequence[Method], axis: Axis) -> list[Method]:
    """The methods that have this cost."""
    return [method for method in methods if method[axis.key]]


def frontier(methods: Sequence[Method], axis: Axis) -> list[Method]:
    """Methods that no other beats in bits per byte and cost, cheapest first; those that see the future left out."""
    sign = -1.0 if axis.more_is_better else 1.0
    ranked = [method for method in shown(methods, axis) if method["causal"]]
    best: list[Method] = []
    for method in sorted(ranked, key=lambda m: (sign * m[axis.key], m["bits_per_byte"])):
        if not best or method["bits_per_byte"] < best[-1]["bits_per_byte"]:
            best.append(method)
    return best


def error_bar(method: Method, base: float | None) -> tuple[float, float] | None:
    """The interval of the difference, put onto the baseline's mean; ``None`` for the baseline and without interval."""
    difference = method["difference"]
    if base is None or not difference or difference["low"] is None or difference["high"] is None:
        return None
    return base + difference["low"], base + difference["high"]


def level(methods: Sequence[Method]) -> float | None:
    """Bits per byte of the baseline."""
    baseline = baseline_of(methods)
    return baseline["bits_per_byte"] if baseline else None
