"""L1 penalty on gates, weighted by load: makes and keeps ReLU routing sparse and balanced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.losses.base import Loss, Scope
from libmoe.losses.frequency import frequencies, group_sums, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class L1Loss(Loss):
    """``L = sum_e f_e mean_t R_te`` with ``f_e = N / (k T) sum_t 1[R_te > 0]`` (ReMoE, arXiv 2412.14711 §3.4).

    R are the gates in ``routing.scores_TN``, which must not be negative.  f carries no gradient; its mean over
    experts is 1 when tokens use k experts on average.  Unlike a balance loss this one has no lower bound above
    0, so a fixed coefficient would switch every expert off: let
    :class:`~libmoe.controllers.l1.L1Controller` move ``coefficient``.

    Args:
        coefficient: lambda; a plain attribute that may change between steps.
        scope: tokens over which f is counted.
        target_k: k, the average number of experts per token aimed at.
        load_weighted: ``False`` takes f = 1, the plain L1 norm.
    """

    name = "l1"

    def __init__(
        self, coefficient: float, scope: Scope = "sequence", *, target_k: float, load_weighted: bool = True
    ) -> None:
        super().__init__(coefficient, scope)
        self.target_k, self.load_weighted = target_k, load_weighted
        self.counts_steps = load_weighted

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        gates_TN, plan = self.scores(routing), self.sparse(routing)
        real_TN, tokens = real_tokens(gates_TN, ctx)
        if not self.load_weighted:
            return real_TN.sum(), tokens
        frequency_GN, group_T = frequencies(plan, self.scope, ctx, gates_TN.dtype)
        weight_GN = plan.num_experts / self.target_k * frequency_GN
        return (weight_GN * group_sums(real_TN, group_T, len(weight_GN))).sum(), tokens
