"""Routing of single tokens by a router whose experts choose: what stands in where there is no group to choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.gates import LinearGate

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class SelectionPredictor(nn.Module):
    """Logits ``[T, N]`` of a sigmoid classifier: would expert e pick token t?

    The second router of Mixture-of-Depths (arXiv 2404.02258 §3.5).  It reads ``x_TD [T, D]`` without gradient, so that
    learning to predict (:class:`~libmoe.losses.selection.SelectionLoss`) changes nothing else, and computes in at least
    float32.

    Args:
        dim, num_experts: D, N.
        hidden: width of the one hidden layer; 0 for none, a second linear gate.
    """

    def __init__(self, dim: int, num_experts: int, hidden: int = 64) -> None:
        super().__init__()
        if hidden < 0:
            raise ConfigError(f"predictor_hidden={hidden} must not be negative; 0 is a linear predictor")
        self.inner = LinearGate(dim, hidden, bias=True, init_std=dim**-0.5) if hidden else None
        width = hidden or dim
        self.outer = LinearGate(width, num_experts, bias=True, init_std=width**-0.5)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.detach()
        return self.outer(x_TD if self.inner is None else F.gelu(self.inner(x_TD)))


def choice_of_tokens(
    logits_TN: Tensor,
    predicted_TN: Tensor | None,
    average: float,
    ctx: LayerContext,
    one: bool = False,
    scale_input: bool = False,
) -> Routing:
    """Each token by itself: all experts with ``predicted_TN`` above 0, or without it its ``round(average)`` best ones.

    Weights are the probabilities of the experts, or 1 with ``one``.  Where an intervention forces k experts,
    they are the k most predicted.  With predictions padding gets no expert.
    """
    scores_TN = logits_TN.softmax(dim=-1)
    weight_TN = torch.ones_like(scores_TN) if one else scores_TN
    if predicted_TN is None:
        k = ctx.top_k(max(1, round(average)))
        expert_TK = ctx.memo("pick", lambda: ctx.edit_scores(scores_TN.detach()).topk(k, dim=-1).indices)
        plan = SparsePlan.from_topk(
            expert_TK, weight_TN.gather(1, expert_TK), scores_TN.shape[1], scale_input=scale_input
        )
        return Routing(plan, logits_TN, scores_TN)

    def select() -> Tensor:
        banned_TN = ctx.edit_scores(scores_TN.detach()).isneginf()
        wanted_TN = predicted_TN.detach().masked_fill(banned_TN, -torch.inf)
        forced = ctx.top_k(0)
        chosen_TN = wanted_TN > 0
        if forced:
            best_TK = wanted_TN.topk(forced, dim=-1).indices
            chosen_TN = torch.zeros_like(chosen_TN).scatter(1, best_TK, True) & ~banned_TN
        return chosen_TN if ctx.mask_T is None else chosen_TN & ctx.mask_T.unsqueeze(1)

    plan = SparsePlan.from_mask(weight_TN, ctx.memo("pick", select))
    plan.scale_input = scale_input
    return Routing(plan, logits_TN, scores_TN, {"predicted_TN": predicted_TN})
