"""Real images for theories that are proved for made-up ones: the 1,797 handwritten digits of scikit-learn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError

SIDE = 8
"""Pixels of a side."""


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Pixels ``[I, 8, 8]`` in 0 to 1, and the digits ``[I]``, int64.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("real digits need scikit-learn: pip install 'libmoe[theory]'") from None
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)


def halves(rows_I: Tensor, generator: torch.Generator, first: int) -> tuple[Tensor, Tensor]:
    """``first`` of the rows, drawn at random, and the others; so that no image is seen in training and in testing."""
    order_I = rows_I[torch.randperm(len(rows_I), generator=generator)]
    return order_I[:first], order_I[first:]
