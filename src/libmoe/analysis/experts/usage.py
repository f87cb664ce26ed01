"""Which experts to remove, by how often or how strongly calibration text uses them (arXiv 2505.03531 §4.2).

``hard`` is how often an expert is chosen (``load_N``), ``soft`` the sum of the weights with which it is (``weight_N``).
Removing experts that text of the task seldom uses flatters the score on that task: calibrate on other text.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

from libmoe.analysis.counts import LayerCounts
from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.core.seeding import derive_seed

Count = Literal["hard", "soft"]
Rule = Literal["random", "odd", "even", "first", "last"]


def least_used(counts: LayerCounts, number: int, by: Count = "soft") -> list[int]:
    """The ``number`` experts of a layer with the smallest count, of equal ones the last, in order.

    They are what :class:`~libmoe.core.interventions.logits.PruneExperts` takes.

    Args:
        counts: of the layer, from :func:`libmoe.analysis.counts.count`.

    Raises:
        ConfigError: unknown count, or no expert would be left.
        DataError: nothing was routed.
    """
    if by not in get_args(Count):
        raise unknown("count", by, get_args(Count))
    _check(number, counts.num_experts)
    if not counts.tokens:
        raise DataError("nothing was routed in this layer; trace calibration text first")
    used_N = counts.load_N if by == "hard" else counts.weight_N
    kept = np.argsort(-used_N, kind="stable")
    return sorted(kept[len(kept) - number :].tolist())


def removed(rule: Rule, num_experts: int, number: int, *, seed: int = 0, layer: int = 0) -> list[int]:
    """Experts to remove without counting: at random, or by their numbers, as a baseline.

    Args:
        rule: ``random``; ``odd``, ``even``: those with such numbers *stay*; ``first``, ``last``: that end stays.
        number: how many go; for ``odd`` and ``even`` it must be half.
        seed, layer: of the random choice.

    Raises:
        ConfigError: unknown rule, a number that does not fit it, or no expert would be left.
    """
    if rule not in get_args(Rule):
        raise unknown("rule", rule, get_args(Rule))
    _check(number, num_experts)
    if rule == "random":
        generator = torch.Generator().manual_seed(derive_seed(seed, "removed", layer))
        return sorted(torch.randperm(num_experts, generator=generator)[:number].tolist())
    if rule in ("first", "last"):
        return list(range(num_experts - number, num_experts) if rule == "first" else range(number))
    going = [e for e in range(num_experts) if e % 2 == (rule == "even")]
    if len(going) != number:
        raise ConfigError(f"number={number}: rule {rule!r} removes {len(going)} of {num_experts} experts")
    return going


def _check(number: int, num_experts: int) -> None:
    if not 0 <= number < num_experts:
        raise ConfigError(f"number={number} of experts to remove must be between 0 and {num_experts - 1}")
