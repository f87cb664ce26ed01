"""Routings of a chosen distribution, as a router would hand them to the experts.

* ``balanced``: every expert gets the same number of rows, give or take one.
* ``random``: a softmax router whose experts differ mildly in popularity: standard normal logits plus a normal bias
  of each expert with standard deviation 1/2.
* ``zipf``: the first choice falls on expert e with probability proportional to ``1 / (e + 1)``, further choices
  likewise among the rest.
* ``all-to-one``: every token chooses the same K experts, for K = 1 a single one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("balanced", "random", "zipf", "all-to-one")


class Routing(NamedTuple):
    """K different experts of each token (int64) and their weights, which sum to 1: ``[T, K]`` both."""

    expert_TK: Tensor
    weight_TK: Tensor


def make_routings(
    kind: str,
    tokens: int,
    num_experts: int,
    top_k: int,
    count: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> list[Routing]:
    """``count`` independent routings; which experts are popular is the same in all of them."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    bias_N = torch.zeros(num_experts, device=device)
    if kind == "random":
        bias_N = 0.5 * normal(num_experts)
    elif kind == "zipf":
        bias_N = -torch.arange(1, num_experts + 1, device=device).log()
    routings = []
    for _ in range(count):
        if kind == "balanced":
            # Consecutive places on a circle of experts differ; shuffled tokens and experts hide the order.
            place_TK = torch.arange(tokens * top_k, device=device).view(tokens, top_k) % num_experts
            expert_N = torch.randperm(num_experts, generator=generator, device=device)
            token_T = torch.randperm(tokens, generator=generator, device=device)
            expert_TK, logit_TK = expert_N[place_TK[token_T]], normal(tokens, top_k)
        elif kind == "all-to-one":
            expert_TK = torch.arange(top_k, device=device).repeat(tokens, 1)
            logit_TK = normal(tokens, top_k)
        elif kind == "zipf":
            # Adding Gumbel noise to log probabilities and taking the largest samples without replacement.
            uniform_TN = torch.rand(tokens, num_experts, generator=generator, device=device).clamp_(
                1e-20, 1 - 1e-7
            )
            expert_TK = (bias_N - (-uniform_TN.log()).log()).topk(top_k).indices
            logit_TK = normal(tokens, top_k)
        else:
            logit_TK, expert_TK = (normal(tokens, num_experts) + bias_N).topk(top_k)
        routings.append(Routing(expert_TK, logit_TK.softmax(-1).to(dtype)))
    return routings
