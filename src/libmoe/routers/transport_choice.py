"""Expert choice by a transport plan instead of the scores."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.expert_choice import ExpertChoiceRouter
from libmoe.routers.transport import quadratic_plan, sinkhorn

TransportPlan = Literal["sinkhorn", "sparse"]


class TransportChoiceRouter(ExpertChoiceRouter):
    """Each expert takes the tokens of which a transport plan of the group gives it most (arXiv 2401.15969 §3).

    The plan only ranks; weights are those of :class:`~libmoe.routers.expert_choice.ExpertChoiceRouter`.

    Args:
        transport: ``sinkhorn``, entropy-regularised, of the logits (a softmax over experts shifts them by token, which
            the plan does not notice), or ``sparse``, quadratic with as many entries for an expert as it takes tokens,
            of the scores.  Tokens without an entry come last, by score.
        iterations: of the plan; 20 as published.
        strength, rate: of the quadratic regulariser, and of the ascent that finds the ``sparse`` plan.
        options: those of the base class.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        capacity_factor: float = 2.0,
        *,
        transport: TransportPlan = "sinkhorn",
        iterations: int = 20,
        strength: float = 1.0,
        rate: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(
            dim, num_experts, capacity_factor, iterations=iterations, strength=strength, **options
        )
        if transport not in ("sinkhorn", "sparse"):
            raise unknown("transport plan", transport, ["sinkhorn", "sparse"])
        if self.score_axis != "experts" or self.max_experts_per_token is not None:
            raise ConfigError("a transport plan needs score_axis='experts' and no max_experts_per_token")
        self.transport, self.rate = transport, rate

    def rank(self, scores_GNL: Tensor, real_GL: Tensor, k_G: Tensor) -> tuple[Tensor, dict[str, float]]:
        scores_GLN = scores_GNL.transpose(1, 2)
        if self.transport == "sinkhorn":
            tiny = torch.finfo(scores_GLN.dtype).tiny
            log_GLN = sinkhorn(scores_GLN.clamp_min(tiny).log(), real_GL, self.iterations)
            return log_GLN.transpose(1, 2), {}
        known_GLN = scores_GLN.clamp_min(0)
        plan_GLN = quadratic_plan(
            known_GLN, real_GL, k_G, strength=self.strength, iterations=self.iterations, rate=self.rate
        )
        # Scores are at most 1, so that all of these rank behind the plan's entries.
        return torch.where(plan_GLN > 0, plan_GLN, known_GLN - 2).transpose(1, 2), {}
