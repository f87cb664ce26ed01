"""Which experts to remove, by how often or how strongly calibration text uses them (arXiv 2505.03531 §4.2).

``hard`` counts how often an expert is chosen, ``soft`` adds up the weights with which it is.  Removing experts that
text of the task seldom uses flatters the score on that task: calibrate on other text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.seeding import derive_seed

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

Count = Literal["hard", "soft"]
Rule = Literal["random", "odd", "even", "first", "last"]


class UsageCounts:
    """Recorder that adds up both counts over real tokens, before capacity drops, by layer: ``[N]`` in float64."""

    def __init__(self) -> None:
        self.hard: dict[int, Tensor] = {}
        self.soft: dict[int, Tensor] = {}

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        plan, mask_T = routing.plan, ctx.mask_T
        if not isinstance(plan, SparsePlan):
            raise ConfigError(
                f"cannot count choices in layer {ctx.index}: its router makes plans of kind {plan.kind!r}"
            )
        real_A = slice(None) if mask_T is None else mask_T[plan.token_A]
        expert_A, weight_A = plan.expert_A[real_A], plan.weight_A.detach()[real_A].double()
        for counts, value_A in ((self.hard, torch.ones_like(weight_A)), (self.soft, weight_A)):
            sum_N = value_A.new_zeros(plan.num_experts).index_add_(0, expert_A, value_A).cpu()
            counts[ctx.index] = counts.get(ctx.index, 0) + sum_N

    def least(self, layer: int, number: int, by: Count = "soft") -> list[int]:
        """The ``number`` experts of a layer with the smallest count, of equal ones the last, in order.

        They are what :class:`~libmoe.core.interventions.logits.PruneExperts` takes.

        Raises:
            ConfigError: unknown count, or no expert would be left.
            DataError: nothing was counted in this layer.
        """
        if by not in get_args(Count):
            raise unknown("count", by, get_args(Count))
        counts = self.hard if by == "hard" else self.soft
        if layer not in counts:
            raise DataError(f"layer {layer} was not counted; there are {sorted(counts)}")
        _check(number, len(counts[layer]))
        kept = counts[layer].argsort(descending=True, stable=True)
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
