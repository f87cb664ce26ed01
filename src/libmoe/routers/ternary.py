"""Ternary choices: each expert may be added, subtracted or left out (TC-MoE, Yan et al., ICLR 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.gates import LinearGate

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class TernaryRouter(Router):
    """Top-k over 2N + M choices: ``+E_i`` for N experts, ``-E_i`` for the same N experts, M times nothing.

    ``p = softmax(W x + offset)`` over all choices.  The weight of a chosen +E_i or -E_i is p divided by the sum
    of p over the chosen choices that are not null and over *all* null choices, chosen or not: a token that
    leans towards null gets a smaller output.

    The sign goes into the weight, so experts are neither stored nor run twice: a token that chose both +E_i and
    -E_i has one assignment with the difference of the weights, and null choices make no assignment at all.
    ``scores_TN`` of the routing are the probabilities of the experts among the choices that are not null,
    both signs added; ``extras["null_T"]`` is the probability of null.

    Args:
        dim, num_experts, top_k: D, N, K.
        num_null: M; ``None`` takes K, so that a token may choose nothing.
        negative_offset, null_offset: constants added to the logits of the -E_i and of the null choices, which
            make training start near plain top-k routing.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        num_null: int | None = None,
        negative_offset: float = -1.0,
        null_offset: float = -10.0,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__(num_experts)
        self.top_k = top_k
        self.num_null = top_k if num_null is None else num_null
        if self.num_null < 0:
            raise ConfigError(f"null_choices must not be negative, got {self.num_null}; use 0 for none")
        choices = 2 * num_experts + self.num_null
        if not 1 <= top_k <= choices:
            raise ConfigError(f"top_k={top_k} must be between 1 and the number of choices, {choices}")
        self.gate = gate if gate is not None else LinearGate(dim, choices)
        self.offsets = (0.0, negative_offset, null_offset)

    def logits(self, x_TD: Tensor) -> Tensor:
        """``[T, 2N + M]``, ordered +E, -E, null."""
        sizes = (self.num_experts, self.num_experts, self.num_null)
        logits_TC = self.gate(x_TD)
        offsets = [logits_TC.new_full((n,), v) for n, v in zip(sizes, self.offsets, strict=True)]
        return logits_TC + torch.cat(offsets)

    def select(self, p_TC: Tensor, ctx: LayerContext) -> Tensor:
        """bool ``[T, 2N + M]``: the choices of each token.  Runs without gradient."""
        n = self.num_experts
        # Interventions speak of experts; what they do to an expert's score is done to both of its signs.
        expert_TN = p_TC[:, :n] + p_TC[:, n : 2 * n]
        change_TN = ctx.edit_scores(expert_TN) - expert_TN
        null_TM = torch.zeros_like(p_TC[:, 2 * n :])
        p_TC = p_TC + torch.cat([change_TN, change_TN, null_TM], dim=1)
        choice_TK = p_TC.topk(ctx.top_k(self.top_k), dim=-1).indices
        return torch.zeros_like(p_TC, dtype=torch.bool).scatter(1, choice_TK, True)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        n = self.num_experts
        logits_TC = self.logits(x_TD)
        p_TC = logits_TC.softmax(dim=-1)
        chosen_TC = ctx.memo("select", lambda: self.select(p_TC.detach(), ctx))
        used_TC = p_TC[:, : 2 * n] * chosen_TC[:, : 2 * n]
        null_T = p_TC[:, 2 * n :].sum(dim=-1)
        total_T = (used_TC.sum(dim=-1) + null_T).clamp_min(torch.finfo(p_TC.dtype).tiny)
        plus_TN, minus_TN = (used_TC / total_T.unsqueeze(1)).chunk(2, dim=1)
        runs_TN = chosen_TC[:, :n] | chosen_TC[:, n : 2 * n]
        plan = SparsePlan.from_mask(plus_TN - minus_TN, runs_TN)
        expert_TN = p_TC[:, :n] + p_TC[:, n : 2 * n]
        scores_TN = expert_TN / expert_TN.sum(dim=-1, keepdim=True)
        return Routing(plan, logits_TC, scores_TN, {"null_T": null_T})

    def expected_load(self) -> list[float]:
        """K / N each: the most that can be asked for; null choices and pairs of signs make it less."""
        return [self.top_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, num_null={self.num_null}"
