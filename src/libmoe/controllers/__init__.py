"""Controllers: training-time state that changes parts of the model between optimiser steps."""

from libmoe.controllers.base import Controller, StepInfo
from libmoe.controllers.bias_update import BiasUpdate
from libmoe.controllers.l1 import L1Controller

__all__ = ["BiasUpdate", "Controller", "L1Controller", "StepInfo"]
