"""Controllers: training-time state that changes parts of the model between optimiser steps."""

from libmoe.controllers.adaptive_experts import AdaptiveExperts
from libmoe.controllers.anneal import AnnealToMinimum
from libmoe.controllers.base import Controller, StepInfo
from libmoe.controllers.bias_update import BiasUpdate
from libmoe.controllers.evolution import Evolution
from libmoe.controllers.expert_dropout import ExpertDropout
from libmoe.controllers.frequent_ids import FrequentIds
from libmoe.controllers.gating_dropout import GatingDropout
from libmoe.controllers.l1 import L1Controller
from libmoe.controllers.normalised_gradient import NormalisedExpertGradient
from libmoe.controllers.rms_bias import RMSBiasUpdate
from libmoe.controllers.settle import SettleRouting
from libmoe.controllers.weight_averaging import WeightAveraging

__all__ = [
    "AdaptiveExperts",
    "AnnealToMinimum",
    "BiasUpdate",
    "Controller",
    "Evolution",
    "ExpertDropout",
    "FrequentIds",
    "GatingDropout",
    "L1Controller",
    "NormalisedExpertGradient",
    "RMSBiasUpdate",
    "SettleRouting",
    "StepInfo",
    "WeightAveraging",
]
