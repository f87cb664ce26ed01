"""A router's scores as distributions over experts, and how sure they are."""

from __future__ import annotations

import torch
from torch import Tensor

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
