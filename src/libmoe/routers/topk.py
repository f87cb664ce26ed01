"""Token-choice routing: score, select k, weigh.  Most routers override one of these steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.gates import LinearGate, adopt, ask
from libmoe.routers.noise import Noise, noisy
from libmoe.routers.places import Places

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class TopKRouter(Router):
    """Softmax top-k routing (Shazeer et al., arXiv 1701.06538, without its noise by default).

    The steps, each a method to override::

        logits_TN = self.logits(x_TD, ctx)               gate in float32
        scores_TN = self.score(logits_TN)                softmax over experts
        choice_TN = self.preference(scores_TN, logits_TN, ctx)   what is ranked, no gradient: the scores
        expert_TK = self.select(choice_TN, ctx)          top-k, no gradient, remembered for recomputation
        weight_TK = self.weigh(scores_TN, logits_TN, expert_TK)
        loss scores = self.loss_scores(scores_TN, logits_TN)

    Args:
        dim, num_experts, top_k: D, N, K.
        renormalise: divide the k weights by their sum (ignored with ``softmax_after_topk``).
        softmax_after_topk: take the softmax over the k chosen logits instead of over all N (Mixtral);
            equal to ``renormalise`` for plain softmax scores up to rounding.
        noise: a :class:`~libmoe.routers.noise.Noise` applied while training.
        selection_noise: the same, on what experts are chosen by; weights and losses see the logits without it.
        capacity_factor: drop what exceeds ``ceil(factor * A / N)`` while training; ``None`` never drops.
        eval_capacity_factor: the same outside training (``None``: dropless, so that the output of a token
            does not depend on its neighbours in the batch; a factor makes it depend on all of them).
        places: how places are counted where there is a factor, and who gets them.
        scale_input: weights multiply the experts' inputs instead of their outputs.
        expert_dropout: while training, each expert is out of a token's reach with this probability, independently
            of the others; nothing is rescaled (arXiv 2310.10837 §4).  Where fewer than k are left, the rest of the
            k choices has weight 0.
        gate: module from ``x_TD`` to ``logits_TN``, or a :class:`~libmoe.routers.gates.ContextGate`; a
            :class:`LinearGate` by default.

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
        selection_noise: Noise | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        places: Places = Places(),  # noqa: B008 - it is frozen
        scale_input: bool = False,
        expert_dropout: float = 0.0,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__(num_experts)
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        if not 0 <= expert_dropout < 1:
            raise ConfigError(f"expert_dropout={expert_dropout} must be at least 0 and below 1; 0 is off")
        self.top_k, self.expert_dropout = top_k, expert_dropout
        self.renormalise, self.softmax_after_topk = renormalise, softmax_after_topk
        self.noise, self.selection_noise = noise, selection_noise
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.places = places
        if eval_capacity_factor is not None:
            self.causal, self.batch_independent = False, places.group == "sequence"
        self.scale_input = scale_input
        adopt(self, gate if gate is not None else LinearGate(dim, num_experts))

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return ask(self.gate, x_TD, ctx)

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.softmax(dim=-1)

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        """``[T, N]``: what experts are chosen by, the higher the better.  Runs without gradient."""
        if self.selection_noise is None or not self.training:
            return scores_TN
        return self.score(self.selection_noise.logits(logits_TN, logits_TN, ctx))

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

    def dropped(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor | None:
        """bool ``[T, N]``: experts out of a token's reach, or ``None`` where there are none."""
        if not (self.training and self.expert_dropout):
            return None
        generator = ctx.generator("expert_dropout", scores_TN.device)
        return torch.rand(scores_TN.shape, generator=generator, device=scores_TN.device) < self.expert_dropout

    def capacities(self, tokens: int, k: int, factor: float) -> list[int]:
        """Places of each expert for so many real tokens with k choices each."""
        return [self.places.count(tokens, k, self.num_experts, factor)] * self.num_experts

    @property
    def factor(self) -> float | None:
        """Capacity factor in use; ``None``: nothing is dropped."""
        return self.capacity_factor if self.training else self.eval_capacity_factor

    def keep(
        self, expert_TK: Tensor, scores_TN: Tensor, ctx: LayerContext, asking_TK: Tensor | None = None
    ) -> Tensor | None:
        """bool ``[T, K]`` of assignments within capacity, or ``None`` when nothing is ever dropped.

        Args:
            asking_TK: those that ask for a place; ``None``: all.
        """
        factor = self.factor
        if factor is None:
            return asking_TK if asking_TK is None or ctx.mask_T is None else asking_TK & ctx.mask_T.unsqueeze(1)

        def count(tokens: int, k: int) -> list[int]:
            return self.capacities(tokens, k, factor)

        return self.places.keep(expert_TK, scores_TN, ctx, count, asking_TK)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        return self.decide(*noisy(self.logits, self.noise if self.training else None, x_TD, ctx), ctx)

    def decide(self, logits_TN: Tensor, extras: dict[str, Any], ctx: LayerContext) -> Routing:
        """All that follows the logits; ``extras`` is what losses may want to know of them."""
        scores_TN = self.score(logits_TN)
        dropped_TN = ctx.memo("dropped", lambda: self.dropped(scores_TN, ctx))

        def choose() -> Tensor:
            choice_TN = self.preference(scores_TN.detach(), logits_TN.detach(), ctx)
            return self.select(choice_TN if dropped_TN is None else choice_TN.masked_fill(dropped_TN, -torch.inf), ctx)

        expert_TK = ctx.memo("select", choose)
        weight_TK = self.weigh(scores_TN, logits_TN, expert_TK)
        if dropped_TN is not None:
            weight_TK = weight_TK.masked_fill(dropped_TN.gather(1, expert_TK), 0)
        kept_TK = ctx.memo("keep", lambda: self.keep(expert_TK, scores_TN.detach(), ctx))
        plan = SparsePlan.from_topk(
            expert_TK, weight_TK, self.num_experts, kept_TK, scale_input=self.scale_input
        )
        return Routing(plan, logits_TN, self.loss_scores(scores_TN, logits_TN), extras)

    def expected_load(self) -> list[float]:
        return [self.top_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}"
