"""Samples of several patches, of which one says how another is to be read (arXiv 2208.02813, Definition 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE = 10.0
"""All inputs are multiplied by this: cubic experts begin with tiny weights."""


@dataclass(frozen=True)
class Clusters:
    """The distribution (paper's Definition 3.1 and setting 1 of its code).

    Attributes:
        clusters, patches, dim: K, P and d; 2 K orthonormal directions are needed.
        feature, centre, misleading: intervals of alpha, beta and gamma.
        noise: standard deviation of a noise patch, ``N(0, noise^2 / d I)``.
    """

    clusters: int = 4
    patches: int = 4
    dim: int = 50
    feature: tuple[float, float] = (0.5, 2.0)
    centre: tuple[float, float] = (1.0, 2.0)
    misleading: tuple[float, float] = (0.5, 3.0)
    noise: float = 1.0

    def draw(self, count: int, world: torch.Generator, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Samples ``[n, P, d]``, labels in {0, 1} and clusters, both int64 ``[n]``.

        Args:
            world: from a generator in the same state come the same directions.
            draws: of the samples.
        """
        basis, _ = torch.linalg.qr(torch.randn(self.dim, 2 * self.clusters, generator=world))
        feature_KD, centre_KD = basis.T[: self.clusters], basis.T[self.clusters :]

        def uniform(interval: tuple[float, float]) -> Tensor:
            low, high = interval
            return low + (high - low) * torch.rand(count, 1, generator=draws)

        def signs() -> Tensor:
            return torch.randint(2, (count,), generator=draws)

        cluster = torch.randint(self.clusters, (count,), generator=draws)
        other = (cluster + torch.randint(1, self.clusters, (count,), generator=draws)) % self.clusters
        label, epsilon = signs(), 2.0 * signs() - 1
        x = self.noise / math.sqrt(self.dim) * torch.randn(count, self.patches, self.dim, generator=draws)
        x[:, 0] = uniform(self.feature) * (2.0 * label - 1).unsqueeze(1) * feature_KD[cluster]
        x[:, 1] = uniform(self.centre) * centre_KD[cluster]
        x[:, 2] = uniform(self.misleading) * epsilon.unsqueeze(1) * feature_KD[other]
        order = torch.rand(count, self.patches, generator=draws).argsort(1)
        return SCALE * x.gather(1, order.unsqueeze(2).expand_as(x)), label, cluster
