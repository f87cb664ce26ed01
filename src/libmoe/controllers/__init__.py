"""Controllers: training-time state that changes parts of the model between optimiser steps."""

from libmoe.controllers.base import Controller, StepInfo

__all__ = ["Controller", "StepInfo"]
