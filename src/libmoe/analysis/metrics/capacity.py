"""How many different paths routing allows (arXiv 2410.15732 §3)."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb, prod

from libmoe.core.errors import ConfigError


def routing_degree(layers: Iterable[tuple[int, int]]) -> int:
    """Number of distinct combinations of experts over MoE layers of (N experts, k chosen): the product of C(N, k).

    ViMoE finds 32 to 64 enough: fewer limit quality, more are redundant.

    Raises:
        ConfigError: more chosen than there are.
    """
    layers = list(layers)
    for num_experts, k in layers:
        if not 0 <= k <= num_experts:
            raise ConfigError(f"k={k}: between 0 and the {num_experts} experts of the layer can be chosen")
    return prod(comb(num_experts, k) for num_experts, k in layers)
