"""The load-balancing loss ``N * sum_i f_i P_i`` and its scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.statistics import LayerLoad
from libmoe.losses.base import Loss, Scope

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

    Conversions: Switch and transformers' per-layer value are this value times k for k > 1 choices; the MoE++
    paper's ``sum_i f_i P_i`` with f counted per token is this value times ``k / N``.
    """

    name = "balance"

    def __init__(self, coefficient: float, scope: Scope = "sequence", weights: Sequence[float] | None = None) -> None:
        super().__init__(coefficient, scope)
        self.weights = None if weights is None else tuple(weights)

    @property
    def needs_step_counts(self) -> bool:
        return self.scope in ("rank", "global_batch")

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN, plan = routing.scores_TN, routing.plan
        if scores_TN is None or not isinstance(plan, SparsePlan):
            raise ConfigError(f"{self.name} loss needs a sparse plan and scores; this router gives neither or one")
        mask_T = ctx.mask_T
        real_T = torch.ones_like(scores_TN[:, 0]) if mask_T is None else mask_T.to(scores_TN.dtype)
        real_TN = scores_TN if mask_T is None else scores_TN.masked_fill(~mask_T.unsqueeze(1), 0)
        tokens = real_T.sum()
        if self.scope == "sequence":
            sequence_T = ctx.sequence_T.to(scores_TN.device)
            groups = int(sequence_T[-1]) + 1 if len(sequence_T) else 0
            tokens_G = real_T.new_zeros(groups).index_add(0, sequence_T, real_T)
            mass_GN = real_TN.new_zeros(groups, scores_TN.shape[1]).index_add(0, sequence_T, real_TN)
            share_GN = self._shares_by_group(plan, mask_T, sequence_T, groups).to(scores_TN.dtype)
            # tokens_G * N * sum_i f_i P_i with P = mass / tokens: the tokens cancel.
            return self._dot(share_GN, mass_GN).sum(), tokens_G.sum()
        share_N = ctx.memo(f"share/{self.scope}", lambda: self._shares(plan, mask_T, tokens, ctx))
        return self._dot(share_N, real_TN.sum(0)), tokens

    def _dot(self, share: Tensor, mass: Tensor) -> Tensor:
        product = share * mass
        if self.weights is not None:
            if len(self.weights) != product.shape[-1]:
                raise ConfigError(f"{self.name}: {len(self.weights)} weights given for {product.shape[-1]} experts")
            product = product * product.new_tensor(self.weights)
        return product.shape[-1] * product.sum(-1)

    def _shares_by_group(self, plan: SparsePlan, mask_T: Tensor | None, group_T: Tensor, groups: int) -> Tensor:
        token_A, expert_A = plan.token_A, plan.expert_A
        if mask_T is not None:
            real_A = mask_T[token_A]
            token_A, expert_A = token_A[real_A], expert_A[real_A]
        cell_A = group_T[token_A] * plan.num_experts + expert_A
        count_GN = torch.bincount(cell_A, minlength=groups * plan.num_experts).view(groups, plan.num_experts)
        return count_GN / count_GN.sum(1, keepdim=True).clamp_min(1)

    def _shares(self, plan: SparsePlan, mask_T: Tensor | None, tokens: Tensor, ctx: LayerContext) -> Tensor:
        load = LayerLoad(plan.load_N(mask_T), tokens.detach())
        statistics = ctx.forward.options.statistics
        if self.scope != "micro_batch":
            exact = statistics.exact.get(self.scope, {}) if statistics is not None else {}
            if ctx.index in exact:
                load = exact[ctx.index]
            else:
                if statistics is not None and ctx.index in statistics.seen:
                    load = statistics.seen[ctx.index]  # includes this forward: the layer counts before its losses
                if self.scope == "global_batch":
                    load = load.reduced()
        count_N = load.count_N.to(tokens.dtype)
        return count_N / count_N.sum().clamp_min(1)
