"""Load, entropy and specialisation of each MoE layer over a set of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


def entropy(share_N: Tensor) -> float:
    """Entropy of a distribution in nats."""
    return float(-(share_N * share_N.clamp_min(1e-30).log()).sum())


def mutual_information_bits(count_DN: Tensor) -> float:
    """Mutual information of two variables from their joint counts, in bits; 0 when they are independent."""
    total = count_DN.sum()
    if total <= 0:
        return 0.0
    joint = (count_DN / total).double()
    outer = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    used = joint > 0
    return max(0.0, float((joint[used] * (joint[used] / outer[used]).log2()).sum()))


@dataclass
class LayerSummary:
    """One layer: shares of load, their entropy, experts per token and use by domain."""

    layer: int
    num_experts: int
    load: list[float]
    entropy: float
    normalised_entropy: float
    max_violation: float
    dead: int
    experts_per_token: float
    domain_load: dict[str, list[float]] = field(default_factory=dict)
    mutual_information_bits: float = 0.0


class RoutingSummary:
    """Recorder that adds up loads by layer and domain; :meth:`layers` gives the numbers.

    Domains come from the side input ``domain`` (numbers into ``domains``); without it only totals are kept.
    """

    def __init__(self, domains: Sequence[str] = ()) -> None:
        self.domains = list(domains)
        self._count: dict[int, Tensor] = {}
        self._tokens: dict[int, float] = {}
        self._computed: dict[int, float] = {}

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        plan, mask_T = routing.plan, ctx.mask_T
        rows = max(1, len(self.domains))
        count_DN = torch.zeros(rows, plan.num_experts)
        if self.domains and "domain" in ctx.forward.options.side:
            domain_T = ctx.side_T("domain")
            for d in domain_T.unique().tolist():
                inside_T = domain_T == d
                count_DN[d] = plan.load_N(inside_T if mask_T is None else inside_T & mask_T).cpu()
        else:
            count_DN[0] = plan.load_N(mask_T).cpu()
        tokens = float(plan.num_tokens if mask_T is None else mask_T.sum())
        self._count[ctx.index] = self._count.get(ctx.index, 0) + count_DN
        self._tokens[ctx.index] = self._tokens.get(ctx.index, 0.0) + tokens
        computed = tokens * plan.num_experts
        if isinstance(plan, SparsePlan):
            per_token_T = plan.experts_per_token()
            computed = float((per_token_T if mask_T is None else per_token_T[mask_T]).sum())
        self._computed[ctx.index] = self._computed.get(ctx.index, 0.0) + computed

    def layers(self) -> list[LayerSummary]:
        return [self._summarise(i) for i in sorted(self._count)]

    def _summarise(self, index: int) -> LayerSummary:
        count_DN = self._count[index].double()
        count_N = count_DN.sum(0)
        num_experts = len(count_N)
        share_N = count_N / count_N.sum().clamp_min(1e-30)
        nats = entropy(share_N)
        use = {
            name: (count_DN[d] / count_DN[d].sum().clamp_min(1e-30)).tolist()
            for d, name in enumerate(self.domains)
            if count_DN[d].sum() > 0
        }
        return LayerSummary(
            layer=index,
            num_experts=num_experts,
            load=share_N.tolist(),
            entropy=nats,
            normalised_entropy=nats / math.log(num_experts) if num_experts > 1 else 1.0,
            max_violation=float(share_N.max() * num_experts - 1),
            dead=int((count_N == 0).sum()),
            experts_per_token=self._computed[index] / max(self._tokens[index], 1.0),
            domain_load=use,
            mutual_information_bits=mutual_information_bits(count_DN) if len(use) > 1 else 0.0,
        )
