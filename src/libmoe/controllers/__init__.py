"""Controllers: training-time state that changes parts of the model between optimiser steps."""

from libmoe.controllers.adaptive_experts import AdaptiveExperts
from libmoe.controllers.anneal import AnnealToMinimum
from libmoe.controllers.base import Controller, StepInfo
from libmoe.controllers.bias_update import BiasUpdate
from libmoe.controllers.evolution import Evolution
from libmoe.controllers.expert_dropout import ExpertDropout
from libmoe.controllers.frequent_ids import FrequentIds
from libmoe.controllers.l1 import L1Controller
from libmoe.controllers.settle import SettleRouting

__all__ = [
    "AdaptiveExperts",
    "AnnealToMinimum",
    "BiasUpdate",
    "Controller",
    "Evolution",
    "ExpertDropout",
    "FrequentIds",
    "L1Controller",
    "SettleRouting",
    "StepInfo",
]
