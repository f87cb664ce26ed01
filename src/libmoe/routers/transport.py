"""Assignments of tokens to experts as optimal transport: balanced by construction, before anything is chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def quadratic_plan(
    similarity_GLN: Tensor,
    real_GL: Tensor,
    limit_G: Tensor,
    *,
    strength: float = 1.0,
    iterations: int = 20,
    rate: float = 0.01,
) -> Tensor:
    """``P [G, L, N]`` that maximises ``<S, P> - strength / 2 |P|^2`` with at most ``limit`` tokens for each expert.

    Experts sum to ``n / N`` exactly, and tokens to 1 as well as the iterations get there (Liu et al., arXiv 2209.15466;
    arXiv 2401.15969 §3).  Given a price for each token, an expert's best column is a projection onto the simplex of the
    ``limit`` tokens worth most to it; Adam moves the prices until no token is asked for more or less than once.  With a
    limit of all tokens this is plain quadratic optimal transport.

    Args:
        similarity_GLN: S, of the tokens of each group; finite where ``real_GL``.
        limit_G: int64, most tokens of an expert.
    """
    dtype = torch.promote_types(similarity_GLN.dtype, torch.float32)
    real_GL1 = real_GL.unsqueeze(2)
    s_GLN = similarity_GLN.to(dtype).masked_fill(~real_GL1, 0)
    if not s_GLN.numel():
        return s_GLN
    mass_G11 = (real_GL.sum(dim=1).to(dtype) / s_GLN.shape[2]).view(-1, 1, 1)
    price_GL1 = s_GLN.new_zeros(real_GL1.shape)
    moment, square = torch.zeros_like(price_GL1), torch.zeros_like(price_GL1)

    def plan() -> Tensor:
        worth_GLN = ((s_GLN - price_GL1) / (strength * mass_G11)).masked_fill(~real_GL1, -torch.inf)
        return mass_G11 * _sparse_simplex(worth_GLN, limit_G)

    for step in range(1, iterations + 1):
        excess_GL1 = (plan().sum(dim=2, keepdim=True) - 1).masked_fill(~real_GL1, 0)
        moment, square = 0.9 * moment + 0.1 * excess_GL1, 0.999 * square + 0.001 * excess_GL1.square()
        price_GL1 = price_GL1 + rate * (moment / (1 - 0.9**step)) / (
            (square / (1 - 0.999**step)).sqrt() + 1e-8
        )
    return plan()


def _sparse_simplex(v_GLN: Tensor, limit_G: Tensor) -> Tensor:
    """Along L: the projection of the ``limit`` largest entries onto the simplex, 0 elsewhere."""
    value_GLN, order = v_GLN.sort(dim=1, descending=True)
    rank_L1 = torch.arange(1, v_GLN.shape[1] + 1, device=v_GLN.device).unsqueeze(1)
    inside_GLN = (rank_L1 <= limit_G.view(-1, 1, 1)) & ~value_GLN.isneginf()
    finite_GLN = value_GLN.masked_fill(~inside_GLN, 0)
    sum_GLN = finite_GLN.cumsum(dim=1) - 1
    support = ((finite_GLN * rank_L1 > sum_GLN) & inside_GLN).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = sum_GLN.gather(1, support - 1) / support
    p_GLN = (finite_GLN - threshold).clamp_min(0).masked_fill(~inside_GLN, 0)
    return torch.zeros_like(v_GLN).scatter(1, order, p_GLN)


def sinkhorn(logits_GLN: Tensor, real_GL: Tensor, iterations: int = 20) -> Tensor:
    """``log P`` for ``P = diag(u) exp(logits) diag(v)``: real tokens sum to 1, experts to ``n / N`` of n real tokens.

    The entropy-regularised transport plan of strength 1 (Clark et al., arXiv 2202.01169; Liu et al., arXiv
    2401.15969), by rounds that set the sums of experts and then those of tokens: after any number of rounds the
    latter are exact.  In the log domain, in at least float32; ``-inf`` where a group has no token.

    Args:
        logits_GLN: of the tokens of each group.
        real_GL: ``False`` where a group has no token.
    """
    log_GLN = logits_GLN.to(torch.promote_types(logits_GLN.dtype, torch.float32))
    log_GLN = log_GLN.masked_fill(~real_GL.unsqueeze(2), -torch.inf)
    if not log_GLN.numel():
        return log_GLN
    share_G11 = (real_GL.sum(dim=1).to(log_GLN.dtype) / log_GLN.shape[2]).log().view(-1, 1, 1)
    for _ in range(iterations):
        log_GLN = log_GLN - log_GLN.logsumexp(dim=1, keepdim=True) + share_G11
        log_GLN = log_GLN - log_GLN.logsumexp(dim=2, keepdim=True).masked_fill(~real_GL.unsqueeze(2), 0)
    return log_GLN
