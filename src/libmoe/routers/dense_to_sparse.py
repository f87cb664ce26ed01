"""A gate that uses all experts at first and fewer as its temperature falls (DTS gate, EvoMoE)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.noise import GumbelNoise
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Weights = Literal["softmax", "gumbel"]


class DenseToSparseRouter(VariableKRouter):
    """Gumbel-softmax above a threshold, top-k in the end (EvoMoE, arXiv 2112.14397 §3.3).

    With logits ``z = W x`` and ``g = softmax((z + Gumbel) / temperature)`` a token in training uses the experts with
    ``g > threshold``, all at a high temperature and few at a low one; once :attr:`hard`, the k largest g, which for
    k = 1 is a draw from ``softmax(z)``.  Evaluation takes the k largest z, whatever the temperature, and draws
    nothing.  Weights are not divided by their sum.

    While :attr:`single` is set there is no choice: all tokens use expert 0 with weight 1, as if the layer were a dense
    FFN, and neither losses nor noise reach the gate.

    Args:
        dim, num_experts, top_k: D, N and the k of the end.
        threshold: c; below 1 / N, so that there is always an expert.
        weights: of the experts in use: ``softmax`` of z, without noise, as released, or g (``gumbel``).
        temperature: before a controller sets it.
        options: those of :class:`~libmoe.routers.variable.VariableKRouter`.

    Attributes:
        temperature, hard: where the schedule is; set by :class:`~libmoe.controllers.evolution.Evolution` before each
            step, and without effect outside training.
        single: bool buffer ``[]``, saved with the model.
    """

    single: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        threshold: float = 0.001,
        weights: Weights = "softmax",
        temperature: float = 1.0,
        single: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        if not 0 <= threshold < 1 / num_experts:
            raise ConfigError(
                f"threshold={threshold} must be at least 0 and below 1 / num_experts = {1 / num_experts:g}, or a token "
                "may find no expert"
            )
        self.top_k, self.threshold, self.weights = top_k, threshold, weights
        self.temperature, self.hard, self.gumbel = temperature, False, GumbelNoise()
        self.register_buffer("single", torch.tensor(single))

    def choose(self, scores_TN: Tensor) -> Tensor:
        if self.training and not self.hard:
            return scores_TN > self.threshold
        best_TK = scores_TN.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(scores_TN, dtype=torch.bool).scatter(1, best_TK, True)

    def sampled(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        """g ``[T, N]``."""
        return (self.gumbel.logits(logits_TN, logits_TN, ctx) / self.temperature).softmax(dim=-1)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN = self.logits(x_TD, ctx)
        if bool(self.single):
            return self._one_expert(logits_TN)
        g_TN = self.sampled(logits_TN, ctx) if self.training else None
        scores_TN = g_TN if g_TN is not None and self.weights == "gumbel" else self.score(logits_TN)
        choice_TN = logits_TN if g_TN is None else g_TN
        mask_TN = ctx.memo("select", lambda: self.select(choice_TN.detach(), ctx))
        kept_TN = ctx.memo("keep", lambda: self.keep(mask_TN, scores_TN.detach(), ctx))
        plan = SparsePlan.from_mask(self.weigh(scores_TN, logits_TN, mask_TN), mask_TN, kept_TN)
        return Routing(plan, logits_TN, self.loss_scores(scores_TN, logits_TN))

    def _one_expert(self, logits_TN: Tensor) -> Routing:
        # Gradients of 0 rather than none: the gate stays in the graph, as data parallelism wants.
        nothing_TN = 0 * logits_TN
        weight_T1 = 1 + nothing_TN[:, :1]
        expert_T1 = torch.zeros(weight_T1.shape, dtype=torch.long, device=logits_TN.device)
        logits_TN = logits_TN.detach() + nothing_TN
        return Routing(SparsePlan.from_topk(expert_T1, weight_T1, self.num_experts), logits_TN, self.score(logits_TN))
