"""Load, entropy and specialisation of each MoE layer over a set of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.analysis.metrics.information import mutual_information
from libmoe.core import balance
from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


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
        count_DN = self._count[index].double().numpy()
        count_N = count_DN.sum(0)
        use = {
            name: balance.shares(count_DN[d]).tolist()
            for d, name in enumerate(self.domains)
            if count_DN[d].sum() > 0
        }
        return LayerSummary(
            layer=index,
            num_experts=len(count_N),
            load=balance.shares(count_N).tolist(),
            entropy=balance.entropy(count_N),
            normalised_entropy=balance.normalised_entropy(count_N),
            max_violation=balance.max_violation(count_N),
            dead=len(balance.dead(count_N)),
            experts_per_token=self._computed[index] / max(self._tokens[index], 1.0),
            domain_load=use,
            mutual_information_bits=mutual_information(count_DN) / math.log(2),
        )
