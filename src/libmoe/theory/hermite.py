"""Hermite polynomials of normal variables, and how hard a direction is to find by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from libmoe.core.errors import ConfigError


def hermite(order: int, z: Tensor) -> Tensor:
    """Probabilists' ``He_i``: ``He_0 = 1``, ``He_1 = z``, ``He_{i+1} = z He_i - i He_{i-1}``."""
    before, now = torch.zeros_like(z), torch.ones_like(z)
    for i in range(order):
        before, now = now, z * now - i * before
    return now


def coefficients(f: Callable[[Tensor], Tensor], most: int = 8, points: int = 120) -> Tensor:
    """``E[f(z) He_i(z)] / sqrt(i!)`` for i = 0 to ``most`` and z ~ N(0, 1), by Gauss-Hermite quadrature, float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights) / math.sqrt(2 * math.pi)
    return torch.stack([(w * f(z) * hermite(i, z)).sum() / math.sqrt(math.factorial(i)) for i in range(most + 1)])


def information_exponent(f: Callable[[Tensor], Tensor], most: int = 8, tolerance: float = 1e-6) -> int:
    """The smallest i of 1 to ``most`` with ``E[f(z) He_i(z)] != 0``: SGD needs about ``d^(i-1)`` samples to find w in
    ``f(w . x)`` (Ben Arous et al. 2021).

    Raises:
        ConfigError: there is none.
    """
    found = (coefficients(f, most)[1:].abs() > tolerance).nonzero()
    if not len(found):
        raise ConfigError(f"f has no Hermite coefficient of order 1 to {most}; raise most={most}")
    return int(found[0]) + 1
