"""Token-choice routing: score, select k, weigh.  Most routers override one of these steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.capacity import Priority, capacity, keep_within
from libmoe.routers.gates import LinearGate

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.routers.noise import Noise


class TopKRouter(Router):
    """Softmax top-k routing (Shazeer et al., arXiv 1701.06538, without its noise by default).

    The steps, each a method to override::

        logits_TN = self.logits(x_TD, ctx)               gate in float32
        scores_TN = self.score(logits_TN)                softmax over experts
        expert_TK = self.select(scores_TN, ctx)          top-k, no gradient, remembered for recomputation
        weight_TK = self.weigh(scores_TN, logits_TN, expert_TK)
        loss scores = self.loss_scores(scores_TN, logits_TN)

    Args:
        dim, num_experts, top_k: D, N, K.
        renormalise: divide the k weights by their sum (ignored with ``softmax_after_topk``).
        softmax_after_topk: take the softmax over the k chosen logits instead of over all N (Mixtral);
            equal to ``renormalise`` for plain softmax scores up to rounding.
        noise: a :class:`~libmoe.routers.noise.Noise` applied while training.
        capacity_factor: drop what exceeds ``ceil(factor * A / N)`` while training; ``None`` never drops.
        eval_capacity_factor: the same outside training (``None``: dropless, so that the output of a token
            does not depend on its neighbours in the batch; a factor makes it depend on all of them).
        gate: module from ``x_TD`` to ``logits_TN``; a :class:`LinearGate` by default.

    Raises:
        ConfigError: k is not in 1..N.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        renormalise: bool = True,
        softmax_after_topk: bool = False,
        noise: Noise | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        priority: Priority = "choice",
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__(num_experts)
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        self.top_k = top_k
        self.renormalise, self.softmax_after_topk = renormalise, softmax_after_topk
        self.noise = noise
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.priority = priority
        if eval_capacity_factor is not None:
            self.causal = self.batch_independent = False
        self.gate = gate if gate is not None else LinearGate(dim, num_experts)

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return self.gate(x_TD)

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.softmax(dim=-1)

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        """int64 ``[T, K]``, best first.  Runs without gradient."""
        return ctx.edit_scores(scores_TN).topk(ctx.top_k(self.top_k), dim=-1).indices

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        if self.softmax_after_topk:
            return logits_TN.gather(1, expert_TK).softmax(dim=-1)
        weight_TK = scores_TN.gather(1, expert_TK)
        if self.renormalise:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return weight_TK

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        """Probabilities for balance losses; rows sum to 1."""
        return scores_TN

    def keep(self, expert_TK: Tensor, ctx: LayerContext) -> Tensor | None:
        """bool ``[T, K]`` of assignments within capacity, or ``None`` when nothing is ever dropped."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None:
            return None
        mask_T = ctx.mask_T
        tokens = expert_TK.shape[0] if mask_T is None else int(mask_T.sum())
        slots = capacity(tokens * expert_TK.shape[1], self.num_experts, factor)
        capacity_N = torch.full((self.num_experts,), slots, device=expert_TK.device)
        return keep_within(expert_TK, capacity_N, mask_T, self.priority)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        noise = self.noise if self.training else None
        logits_TN = self.logits(x_TD if noise is None else noise.inputs(x_TD, ctx), ctx)
        if noise is not None:
            logits_TN = noise.logits(logits_TN, x_TD, ctx)
        scores_TN = self.score(logits_TN)
        expert_TK = ctx.memo("select", lambda: self.select(scores_TN.detach(), ctx))
        weight_TK = self.weigh(scores_TN, logits_TN, expert_TK)
        kept_TK = ctx.memo("keep", lambda: self.keep(expert_TK, ctx))
        plan = SparsePlan.from_topk(expert_TK, weight_TK, self.num_experts, kept_TK)
        return Routing(plan, logits_TN, self.loss_scores(scores_TN, logits_TN))

    def expected_load(self) -> list[float]:
        return [self.top_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}"
