"""Gradient estimators: how the discrete choice passes gradients to the router."""

from libmoe.estimators.base import Estimator
from libmoe.estimators.straight_through import StraightThrough

__all__ = ["Estimator", "StraightThrough"]
