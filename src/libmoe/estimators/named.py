"""Estimators by the names that recipes use."""

from __future__ import annotations

from collections.abc import Callable

from libmoe.core.errors import unknown
from libmoe.estimators.base import Estimator
from libmoe.estimators.dense import DenseGradient
from libmoe.estimators.reinmax import ReinMax
from libmoe.estimators.straight_through import StraightThrough

_NAMED: dict[str, Callable[[], Estimator]] = {
    "straight-through": StraightThrough,
    "dense": DenseGradient,
    "reinmax": ReinMax,
}


def estimator(name: str) -> Estimator | None:
    """The estimator of this name; ``None`` for ``none``, plain gradients.

    Raises:
        ConfigError: there is no such estimator.
    """
    if name == "none":
        return None
    if name not in _NAMED:
        raise unknown("estimator", name, ["none", *_NAMED])
    return _NAMED[name]()
