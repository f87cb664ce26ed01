"""How sparse a mixture should be, by tokens per parameter (arXiv 2508.18672).

At a fixed number of active parameters and tokens, more experts mean more parameters in all and fewer tokens for each.
Tasks that ask for what was read keep improving with total parameters; tasks that ask for reasoning are best at about
20 tokens per *total* parameter, and worse on either side although the training loss still falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from libmoe.bench.scaling.minima import Minimum, minimum
from libmoe.core.errors import ConfigError

REASONING_TOKENS = 20.0
"""Tokens per total parameter at which reasoning was best."""


@dataclass(frozen=True)
class Density:
    """A mixture with the wanted tokens per parameter.

    Attributes:
        density: active share of the experts, ``k/E``; 1 is a dense model.
        tokens_per_param: of total parameters, after rounding the number of experts.
    """

    experts: int
    density: float
    total_params: float
    active_params: float
    tokens_per_param: float


def density_for(
    tokens: float,
    shared_params: float,
    expert_params: float,
    top_k: int,
    *,
    tokens_per_param: float = REASONING_TOKENS,
) -> Density:
    """How many experts give ``tokens_per_param`` when active parameters and tokens are set.

    Args:
        shared_params: parameters that every token uses: embeddings, attention, dense layers, routers, shared experts.
        expert_params: parameters of one expert, over all layers.
        top_k: experts that a token uses.

    Raises:
        ConfigError: a size is not positive, or even ``top_k`` experts leave fewer tokens per parameter.
    """
    for name, value in (("tokens", tokens), ("expert_params", expert_params), ("top_k", top_k)):
        if not value > 0:
            raise ConfigError(f"{name} must be positive, got {value:g}")
    if not tokens_per_param > 0 or shared_params < 0:
        raise ConfigError(
            f"tokens_per_param must be positive and shared_params not negative, got {tokens_per_param:g} and "
            f"{shared_params:g}"
        )
    active = shared_params + top_k * expert_params
    experts = round((tokens / tokens_per_param - shared_params) / expert_params)
    if experts < top_k:
        raise ConfigError(
            f"{tokens:.3g} tokens are {tokens / active:.3g} per parameter already for the {active:.3g} active ones; "
            f"{tokens_per_param:g} need a smaller model or more tokens"
        )
    total = shared_params + experts * expert_params
    return Density(experts, top_k / experts, total, active, tokens / total)


def best_tokens_per_param(
    tokens: ArrayLike, total_params: ArrayLike, task_loss: ArrayLike, *, level: float = 0.95
) -> Minimum:
    """The tokens per total parameter at which a task's loss is lowest, or the verdict that it has no such place.

    Args:
        task_loss: of the right answers given the question; pass errors (1 - accuracy) to ask for accuracy.

    Raises:
        DataError: fewer than three different ratios.
    """
    ratio = np.asarray(tokens, dtype=np.float64) / np.asarray(total_params, dtype=np.float64)
    return minimum(*np.broadcast_arrays(ratio, np.asarray(task_loss, dtype=np.float64)), level=level)
