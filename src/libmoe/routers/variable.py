"""Token choice without a fixed k: each token gets the set of experts that a rule asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.capacity import capacity, keep_best
from libmoe.routers.gates import LinearGate, adopt, ask
from libmoe.routers.groups import Group, rows_of_groups
from libmoe.routers.noise import Noise, noisy

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class VariableKRouter(Router):
    """Base of routers whose tokens use zero to N experts.

    The steps, each a method to override; :meth:`choose` has no default::

        logits_TN = self.logits(x_TD, ctx)               gate in float32
        scores_TN = self.score(logits_TN)                softmax over experts
        mask_TN = self.choose(scores_TN)                 the rule: bool, no gradient, remembered for recomputation
        weight_TN = self.weigh(scores_TN, logits_TN, mask_TN)
        loss scores = self.loss_scores(scores_TN, logits_TN)

    Args:
        dim, num_experts: D, N.
        expected_k: experts per token when routing goes as intended, by which costs and capacities are counted.
        capacity_factor: while training an expert serves ``ceil(factor * expected_k * T / N)`` tokens and drops the
            others, those for which it ranks lowest first and among them the least probable; ``None`` never drops.
        eval_capacity_factor: the same outside training; a token then depends on all others of the batch.
        min_capacity: never fewer places than this.
        group: tokens that share places: the ``batch``, or those of a ``sequence``, which then do not depend on others.
        most: no token uses more than this many experts, its best ones; ``None`` sets no limit.
        noise: a :class:`~libmoe.routers.noise.Noise` applied while training.
        gate: module from ``x_TD`` to ``logits_TN``, or a :class:`~libmoe.routers.gates.ContextGate`; a
            :class:`LinearGate` by default.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        expected_k: float,
        *,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 0,
        group: Group = "batch",
        most: int | None = None,
        noise: Noise | None = None,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__(num_experts)
        if not 0 < expected_k <= num_experts:
            raise ConfigError(
                f"expected_k={expected_k} must be greater than 0 and at most num_experts={num_experts}"
            )
        if most is not None and not 1 <= most <= num_experts:
            raise ConfigError(f"most={most} must be between 1 and num_experts={num_experts}")
        self.expected_k, self.most = expected_k, num_experts if most is None else most
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        if group not in get_args(Group):
            raise unknown("group", group, get_args(Group))
        self.min_capacity, self.group, self.noise = min_capacity, group, noise
        if eval_capacity_factor is not None and eval_capacity_factor * expected_k < num_experts:
            self.causal, self.batch_independent = False, group == "sequence"
        adopt(self, gate if gate is not None else LinearGate(dim, num_experts))

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return ask(self.gate, x_TD, ctx)

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.softmax(dim=-1)

    def choose(self, scores_TN: Tensor) -> Tensor:
        """bool ``[T, N]``: the experts of each token.  An expert that must not be used has score ``-inf``."""
        raise NotImplementedError(f"{type(self).__name__} defines no choose()")

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, mask_TN: Tensor) -> Tensor:
        """``[T, N]``; what stands outside ``mask_TN`` is not looked at."""
        return scores_TN

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        """Probabilities for balance losses."""
        return scores_TN

    def extras(self, scores_TN: Tensor, logits_TN: Tensor) -> dict[str, Any]:
        """What else losses of this router need, for ``Routing.extras``."""
        return {}

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        """The rule and what interventions make of it.  Runs without gradient."""
        scores_TN = ctx.edit_scores(scores_TN)
        mask_TN = self.choose(scores_TN) & ~scores_TN.isneginf()
        limit = min(ctx.top_k(self.num_experts), self.most)  # an intervention may ask for fewer
        if limit < self.num_experts:
            best_TN = torch.zeros_like(mask_TN).scatter(1, scores_TN.topk(limit, dim=-1).indices, True)
            mask_TN = mask_TN & best_TN
        return mask_TN

    def keep(self, mask_TN: Tensor, scores_TN: Tensor, ctx: LayerContext) -> Tensor | None:
        """bool ``[T, N]`` of assignments within capacity, or ``None`` when nothing is ever dropped."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None or factor * self.expected_k >= self.num_experts:  # then every token has a place
            return None
        kept_TN = torch.zeros_like(mask_TN)
        for token_L in rows_of_groups(len(mask_TN), mask_TN.device, ctx, self.group):
            slots = max(capacity(len(token_L), self.num_experts, factor * self.expected_k), self.min_capacity)
            kept_TN[token_L] = keep_best(mask_TN[token_L], scores_TN[token_L], slots)
        return kept_TN

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN, drawn = noisy(self.logits, self.noise if self.training else None, x_TD, ctx)
        scores_TN = self.score(logits_TN)
        mask_TN = ctx.memo("select", lambda: self.select(scores_TN.detach(), ctx))
        own_TN = scores_TN.detach()[:, : self.num_experts]  # nulls, which may follow, have no places
        kept_TN = ctx.memo("keep", lambda: self.keep(mask_TN, own_TN, ctx))
        plan = SparsePlan.from_mask(self.weigh(scores_TN, logits_TN, mask_TN), mask_TN, kept_TN)
        extras = drawn | self.extras(scores_TN, logits_TN)
        return Routing(plan, logits_TN, self.loss_scores(scores_TN, logits_TN), extras)

    def expected_load(self) -> list[float]:
        return [self.expected_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, expected_k={self.expected_k:g}"
