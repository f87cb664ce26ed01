"""Widths of experts that are not all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

from libmoe.core.errors import ConfigError, unknown
from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFNExperts
from libmoe.experts.union import UnionExperts

Pattern = Literal["arithmetic", "geometric", "hybrid", "equal"]


def proportions(pattern: Pattern, num_experts: int) -> list[float]:
    """Relative widths, ascending (HMoE, arXiv 2408.10681 §3.2), written for its 8 experts and continued for others.

    * ``arithmetic``: 9, 11, ... 23: equal steps from 9 to 23;
    * ``geometric``: 1, 2, 4, ... 128: each twice the one before;
    * ``hybrid``: half of the experts 1, a quarter 2, the rest 4;
    * ``equal``: all 1.
    """
    n = num_experts
    if pattern == "arithmetic":
        return [9 + 14 * i / (n - 1) for i in range(n)] if n > 1 else [1.0]
    if pattern == "geometric":
        return [2.0**i for i in range(n)]
    if pattern == "hybrid":
        return [1.0 if i < n // 2 else 2.0 if i < n // 2 + n // 4 else 4.0 for i in range(n)]
    if pattern == "equal":
        return [1.0] * n
    raise unknown("pattern of widths", pattern, ["arithmetic", "geometric", "hybrid", "equal"])


def widths_in(ratio: Sequence[float], mean: int) -> list[int]:
    """Whole widths in these proportions, at least 1 each, that add up to ``mean`` for each.

    Raises:
        ConfigError: a proportion is not positive.
    """
    if any(r <= 0 for r in ratio):
        raise ConfigError(f"widths must be positive, got {list(ratio)}")
    total = mean * len(ratio)
    exact = [total * r / sum(ratio) for r in ratio]
    found = [max(1, int(w)) for w in exact]
    # What rounding left over goes to those that lost most by it, what it took too much comes from the widest.
    by_loss = sorted(range(len(ratio)), key=lambda i: found[i] - exact[i])
    for step in range(total - sum(found)):
        found[by_loss[step % len(found)]] += 1
    while sum(found) > total:
        found[max(range(len(found)), key=found.__getitem__)] -= 1
    return found


def ffn_of_widths(widths: Sequence[int], make: Callable[[int, int], FFNExperts]) -> Experts:
    """Feed-forward experts of these widths; neighbours of equal width are computed together.

    Args:
        make: from a number of experts and their width to experts.
    """
    parts = [make(len(list(run)), width) for width, run in groupby(widths)]
    return parts[0] if len(parts) == 1 else UnionExperts(parts)
