"""How small an expert's capacity may be before it is likely to miss the tokens meant for it (arXiv 2401.13920 §4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.stats.sphere import cap_probability


def capacity_lower_bound(cosine: float, dim: int, num_experts: int) -> float:
    """Tokens an expert must see to expect one that is meant for it: ``1 / (N p)`` with p from ``cap_probability``.

    A token is meant for expert i if ``|cos(x, w_i)| >= cosine``.  Tokens are taken to be uniform directions and the N
    routing weights to be orthogonal and of equal norm, so that each expert gets 1/N of them; a token that it gets is
    then meant for it with probability N p at most.  Grows with the cosine; infinite where p is 0.
    """
    _check(num_experts)
    p = cap_probability(cosine, dim)
    return math.inf if p == 0 else 1 / (num_experts * p)


def capacity_exponential_bound(cosine: float, dim: int, num_experts: int) -> float:
    """``exp(u^2) / N`` with ``u^2 = c^2 dim / (2 - c^2)``: the closed form that stays below it, up to how well the
    paper's ``erfc(u)`` stands for p in many dimensions."""
    _check(num_experts)
    cap_probability(cosine, dim)  # checks the arguments
    return math.exp(cosine**2 * dim / (2 - cosine**2)) / num_experts


def routed_cosine(x_TD: Tensor, weight_ND: Tensor, expert_T: Tensor, quantile: float = 0.0) -> float:
    """How close tokens are to the weights of the expert they went to: the least, or another quantile, of the cosines.

    What to put into :func:`capacity_lower_bound` for data at hand; about 0.03 in the paper.

    Raises:
        ConfigError: no tokens, or a quantile outside 0..1.
    """
    if not len(x_TD) or not 0 <= quantile <= 1:
        raise ConfigError(f"quantile={quantile} of the cosines of {len(x_TD)} tokens; needs tokens, and 0 to 1")
    cosine_T = torch.cosine_similarity(x_TD, weight_ND[expert_T].to(x_TD.dtype), dim=-1)
    return float(torch.quantile(cosine_T.detach().float(), quantile))


def _check(num_experts: int) -> None:
    if num_experts < 1:
        raise ConfigError(f"num_experts must be at least 1, got {num_experts}")
