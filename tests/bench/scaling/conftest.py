"""Runs that follow a law whose constants are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from libmoe.bench.scaling import FORMS, PUBLISHED, Runs, ScalingLaw

Planted = Callable[..., Runs]


@pytest.fixture
def chinchilla() -> ScalingLaw:
    return PUBLISHED["chinchilla"]


@pytest.fixture
def with_experts() -> ScalingLaw:
    """Made up, as arXiv 2404.02852 prints no constants; it agrees with what the paper says of training, see below.

    Sixteen experts then need between 23.7 and 42.8 % of the training FLOPs of four for the same loss.
    """
    return ScalingLaw(
        FORMS["experts"],
        {
            "alpha": 0.34, "beta": 0.7, "gamma": 0.28, "d": 0.0005, "E_start": 1.5, "E_max": 100.0,
            "A": 406.4, "B": 0.6, "C": 410.7, "F": 1.5,
        },
    )  # fmt: skip


@pytest.fixture
def planted() -> Planted:
    def make(
        law: ScalingLaw,
        noise: float = 0.0,
        *,
        seed: int = 0,
        sizes: int = 4,
        budgets: int = 4,
        experts: Sequence[int] = (1,),
        repeats: int = 1,
    ) -> Runs:
        """All sizes x tokens x experts, ``repeats`` times, the loss off by a normal share of ``noise``."""
        grid = np.meshgrid(
            np.geomspace(5e7, 2e9, sizes), np.geomspace(1e9, 4e10, budgets), experts, indexing="ij"
        )
        n, d, e = (np.repeat(axis.ravel(), repeats) for axis in grid)
        off = np.random.default_rng(seed).standard_normal(len(n))
        return Runs.of(n, d, law.predict(n, d, e) * np.exp(noise * off), experts=e, unit="nats per token")

    return make
