"""Entropy-regularised assignment with a limit on experts per token (Expert Choice, arXiv 2202.09368 §3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NEVER = -1e6  # log of "not at all"; finite, because the corrections below subtract it from itself


@dataclass(frozen=True)
class Residual:
    """How far a capped assignment is from its constraints.

    Attributes:
        row_error: largest relative error of an expert's sum, which should be k.
        column_excess: largest excess of a token's sum over the limit, in experts.
    """

    row_error: float
    column_excess: float


def capped_assignment(
    scores_GNL: Tensor,
    k_G: Tensor,
    max_per_token: float,
    real_GL: Tensor | None = None,
    strength: float = 0.01,
    iterations: int = 100,
) -> Tensor:
    """``log A [G, N, L]`` that maximises ``<S, A> + strength * entropy(A)`` under three constraints.

    Each expert's sum over tokens is k, each token's sum over experts at most ``max_per_token``, and entries are
    at most 1.  Solved by Dykstra's alternating Kullback-Leibler projections in the log domain.  Small
    ``strength`` needs many iterations: 0.001 takes thousands where 0.01 takes a hundred.  Look at
    :func:`residual`.

    Args:
        scores_GNL: scores of the tokens of each group for each expert.
        k_G: tokens that each expert of group g takes.
        real_GL: ``False`` where a group has no token.
    """
    log_k_G11 = k_G.to(scores_GNL.dtype).log().view(-1, 1, 1)
    log_max = torch.as_tensor(max_per_token, dtype=scores_GNL.dtype).log().item()
    a = (scores_GNL / strength).clamp_min(_NEVER)
    if real_GL is not None:
        a = a.masked_fill(~real_GL.unsqueeze(1), _NEVER)
    column, entry = torch.zeros_like(a), torch.zeros_like(a)  # Dykstra's corrections of the two inequalities
    for _ in range(iterations):
        a = a - a.logsumexp(dim=2, keepdim=True) + log_k_G11
        u = a + column
        a = u - (u.logsumexp(dim=1, keepdim=True) - log_max).clamp_min(0)
        column = u - a
        u = a + entry
        a = u.clamp_max(0)
        entry = u - a
    return a


def residual(log_GNL: Tensor, k_G: Tensor, max_per_token: float) -> Residual:
    """Distance of a solution of :func:`capped_assignment` from its constraints."""
    if log_GNL.numel() == 0:
        return Residual(0.0, 0.0)
    a = log_GNL.exp()
    row = (a.sum(dim=2) / k_G.unsqueeze(1) - 1).abs().max()
    return Residual(row.item(), (a.sum(dim=1).max() - max_per_token).clamp_min(0).item())
