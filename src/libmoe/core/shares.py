"""A router's scores as distributions over experts, and how sure they are."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing


def shares(routing: Routing, row_R: Tensor | None = None) -> Tensor | None:
    """The router's scores of the tokens ``row_R`` (default: all), made to sum to 1: ``[R, N]`` in float32.

    Scores that are no shares (they may be negative) are replaced by the softmax of the logits; ``None`` where a router
    gives neither for each token.
    """

    def rows(value_TN: Tensor | None) -> Tensor | None:
        if value_TN is None or value_TN.dim() != 2 or len(value_TN) != routing.plan.num_tokens:
            return None
        value_TN = value_TN.detach()
        return (value_TN if row_R is None else value_TN[row_R]).float()

    scores_RN = rows(routing.scores_TN)
    if scores_RN is not None and not bool((scores_RN < 0).any()):
        return scores_RN / scores_RN.sum(1, keepdim=True).clamp_min(1e-30)
    logits_RN = rows(routing.logits_TN)
    return None if logits_RN is None else logits_RN.softmax(1)


def entropy(share_RN: Tensor) -> Tensor:
    """Entropy of each row in nats, ``[R]``."""
    return torch.special.entr(share_RN).sum(1)


def margin(share_RN: Tensor) -> Tensor:
    """Largest share minus the second largest, ``[R]``; 1 where there is a single expert."""
    if share_RN.shape[1] < 2:
        return share_RN.new_ones(len(share_RN))
    best_R2 = share_RN.topk(2, dim=1).values
    return best_R2[:, 0] - best_R2[:, 1]


@torch.no_grad()
def row_confidence(ctx: LayerContext, routing: Routing) -> Tensor:
    """How surely a layer routes each row: mean over real tokens and chosen experts of ``log p``, ``[B]``, at most 0.

    Raises:
        ConfigError: the router chooses no experts by scores.
    """
    plan, share_TN = routing.plan, shares(routing)
    if not isinstance(plan, SparsePlan) or share_TN is None:
        raise ConfigError(f"cannot tell how sure layer {ctx.index} is: its router does not choose experts by scores")
    log_A = share_TN[plan.token_A, plan.expert_A].clamp_min(1e-30).log()
    count_T = torch.bincount(plan.token_A, minlength=plan.num_tokens).clamp_min(1)
    mean_T = torch.zeros_like(share_TN[:, 0]).index_add(0, plan.token_A, log_A) / count_T
    real_T = torch.ones_like(mean_T) if ctx.mask_T is None else ctx.mask_T.to(mean_T)
    mean_BL, real_BL = (mean_T * real_T).view(ctx.batch_shape), real_T.view(ctx.batch_shape)
    return mean_BL.sum(1) / real_BL.sum(1).clamp_min(1)
