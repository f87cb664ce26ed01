"""Gradient estimators: how the discrete choice passes gradients to the router."""

from libmoe.estimators.base import Estimator
from libmoe.estimators.dense import DenseGradient
from libmoe.estimators.named import estimator
from libmoe.estimators.reinmax import ReinMax
from libmoe.estimators.straight_through import StraightThrough

__all__ = ["DenseGradient", "Estimator", "ReinMax", "StraightThrough", "estimator"]
