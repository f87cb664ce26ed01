"""New weights for the domains of a mixture, from how differently a model treats them (arXiv 2406.11256).

Domains whose tokens go to other experts than those of all other domains teach what the others do not, and are sampled
more often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import ConfigError, DataError, unknown

Floats = NDArray[np.float64]


@dataclass
class Reweighting:
    """When and how the weights of domains change while a model trains.

    Attributes:
        by: ``l2`` or ``cosine`` distance between the domains' shares of expert load; ``loss``: the domain's loss minus
            its ``reference``, as in DoReMi, the paper's baseline.
        every: steps between changes (m).
        rate: how strongly weights follow (eta); ``None``: 10, and 1 for losses.
        uniform: share of the uniform mixture in every result (c), which keeps each weight above c / n; ``None``: 0.05,
            and 1e-4 for losses.
        aggregate: of the distances of a domain to all others; ``mean`` counts the 0 to itself too.
        inverse: the domain that is farthest gets the smallest distance, and so on: the opposite hypothesis.
        layer: number of the MoE layer that is looked at, from 0; negative ones count from the last.
        windows: rows of each domain's training text on which a change is based.
        reference: by domain, the loss in nats per token of a model that has learned it.
    """

    by: Literal["l2", "cosine", "loss"] = "l2"
    every: int = 100
    rate: float | None = None
    uniform: float | None = None
    aggregate: Literal["mean", "min", "max"] = "mean"
    inverse: bool = False
    layer: int = -1
    windows: int = 20
    reference: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("every", "windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.reweight.{name} must be at least 1, got {getattr(self, name)}")
        if self.rate is None:
            self.rate = 1.0 if self.by == "loss" else 10.0
        if self.uniform is None:
            self.uniform = 1e-4 if self.by == "loss" else 0.05
        if not (0 <= self.rate < math.inf and 0 <= self.uniform <= 1):
            raise ConfigError(
                f"data.reweight.rate={self.rate} must not be negative and uniform={self.uniform} lie in [0, 1]"
            )
        if bool(self.reference) != (self.by == "loss"):
            raise ConfigError(f"data.reweight.reference belongs to by='loss', which needs it; by={self.by!r}")

    def excess(self, losses: Mapping[str, float]) -> Floats:
        """Loss minus reference of each domain, in the order of ``losses``.

        Raises:
            ConfigError: a domain has no reference.
        """
        for domain in losses:
            if domain not in self.reference:
                raise unknown("domain of data.reweight.reference", domain, self.reference)
        return self._ordered(np.array([loss - self.reference[domain] for domain, loss in losses.items()]))

    def distances(self, load_DN: ArrayLike) -> Floats:
        """How far each domain's load is from the others', ``[D]``; ``load_DN`` counts tokens of D domains.

        Raises:
            DataError: a domain without tokens, or another shape.
        """
        load = np.asarray(load_DN, dtype=np.float64)
        if load.ndim != 2 or not (load >= 0).all() or not (load.sum(1) > 0).all():
            raise DataError(f"load of shape {load.shape}: must be counts [domains, experts], some in each domain")
        share = load / load.sum(1, keepdims=True)
        if self.by == "cosine":
            unit = share / np.linalg.norm(share, axis=1, keepdims=True)
            distance_DD = 1 - unit @ unit.T
        else:
            distance_DD = np.linalg.norm(share[:, None] - share[None], axis=-1)
        if self.aggregate == "mean":
            return self._ordered(distance_DD.mean(1))
        others = ~np.eye(len(share), dtype=bool)
        reduce, nothing = (np.min, np.inf) if self.aggregate == "min" else (np.max, -np.inf)
        return self._ordered(np.where(len(share) > 1, reduce(np.where(others, distance_DD, nothing), axis=1), 0.0))

    def updated(self, weight_D: ArrayLike, distance_D: ArrayLike) -> Floats:
        """``(1 - c) softmax(log w + eta distance) + c / n``, which sums to 1 (algorithm 1)."""
        weight = np.asarray(weight_D, dtype=np.float64)
        assert self.rate is not None and self.uniform is not None
        with np.errstate(divide="ignore"):
            exponent = np.log(weight) + self.rate * np.asarray(distance_D, dtype=np.float64)
        share = np.exp(exponent - exponent.max())
        mixed: Floats = (1 - self.uniform) * share / share.sum() + self.uniform / len(weight)
        return mixed / mixed.sum()

    def _ordered(self, distance_D: Floats) -> Floats:
        if not self.inverse:
            return distance_D
        order, turned = np.argsort(distance_D, kind="stable"), np.empty_like(distance_D)
        turned[order] = np.sort(distance_D)[::-1]
        return turned
