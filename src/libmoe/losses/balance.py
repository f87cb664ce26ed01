"""The load-balancing loss ``N * sum_i f_i P_i`` and its scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss, Scope
from libmoe.losses.frequency import frequencies, group_sums, real_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class BalanceLoss(Loss):
    """``L = N * sum_i w_i f_i P_i``; exactly 1 at perfect balance (Switch Transformers, arXiv 2101.03961 eq. 4).

    ``f_i`` is the share of assignments that expert i receives, counted before capacity drops and without
    gradient (the shares sum to 1, whatever k); ``P_i`` is the mean of the router's probabilities.  Both are
    taken over real tokens of the loss's scope (:class:`~libmoe.losses.base.Loss`).

    * ``sequence`` is the sequence-wise form of DeepSeek (arXiv 2401.06066 as released; arXiv 2412.19437
      eq. 17): each sequence balanced by itself, weighted by its tokens.
    * ``global_batch`` takes f over all ranks and micro-batches of the optimiser step and keeps P local
      (arXiv 2501.11873).  One N-vector is reduced.  Under gradient accumulation f is exact when the training
      loop has run a counting pass (``StepStatistics.exact``); otherwise f covers the micro-batches seen so
      far, as in that paper's buffer.

    Args:
        weights: optional w_i per expert (MoE++, arXiv 2410.07348 eq. 7).
        per_token: ``f_i`` is the fraction of *tokens* that use expert i, which sums to the mean number of experts per
            token; the value at perfect balance is that number, and where it varies so does the loss's weight
            (arXiv 2403.07652).

    Conversions: Switch and transformers' per-layer value are this value times k for k > 1 choices; the MoE++
    paper's ``sum_i f_i P_i`` with f counted per token is this value times ``k / N``.
    """

    name = "balance"
    counts_steps = True

    def __init__(
        self,
        coefficient: float,
        scope: Scope = "sequence",
        weights: Sequence[float] | None = None,
        *,
        per_token: bool = False,
    ) -> None:
        super().__init__(coefficient, scope)
        self.weights = None if weights is None else tuple(weights)
        self.per_token = per_token

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN, plan = self.scores(routing), self.sparse(routing)
        real_TN, tokens = real_tokens(scores_TN, ctx)
        frequency_GN, group_T = frequencies(plan, self.scope, ctx, scores_TN.dtype)
        total_G1 = 1.0 if self.per_token else frequency_GN.sum(-1, keepdim=True).clamp_min(1e-12)
        share_GN = frequency_GN / total_G1
        # Weighted by its tokens, a group's loss is N * sum_i f_i times the *sum* of its scores.
        return self._dot(share_GN, group_sums(real_TN, group_T, len(share_GN))).sum(), tokens

    def _dot(self, share: Tensor, mass: Tensor) -> Tensor:
        product = share * mass
        if self.weights is not None:
            if len(self.weights) != product.shape[-1]:
                raise ConfigError(f"{self.name}: {len(self.weights)} weights given for {product.shape[-1]} experts")
            product = product * product.new_tensor(self.weights)
        return product.shape[-1] * product.sum(-1)
