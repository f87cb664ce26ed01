"""Routers: what decides.  Start a new one from ``TopKRouter`` (override one step) or ``Router``."""

from libmoe.core.routing import Router, Routing
from libmoe.routers.biased import BiasedRouter
from libmoe.routers.cosine import CosineGate, CosineRouter, PerturbedCosineGate
from libmoe.routers.expert_choice import ExpertChoiceRouter
from libmoe.routers.gates import LinearGate
from libmoe.routers.group_limited import GroupLimitedRouter
from libmoe.routers.hash import HashRouter
from libmoe.routers.hyper import HyperGate
from libmoe.routers.pathway import PathwayRouter
from libmoe.routers.random import RandomRouter
from libmoe.routers.relu import ReLURouter
from libmoe.routers.sigmoid import SigmoidRouter
from libmoe.routers.soft import SoftRouter
from libmoe.routers.ternary import TernaryRouter
from libmoe.routers.topk import TopKRouter
from libmoe.routers.ungated import UngatedRouter

__all__ = [
    "BiasedRouter",
    "CosineGate",
    "CosineRouter",
    "ExpertChoiceRouter",
    "GroupLimitedRouter",
    "HashRouter",
    "HyperGate",
    "LinearGate",
    "PathwayRouter",
    "PerturbedCosineGate",
    "RandomRouter",
    "ReLURouter",
    "Router",
    "Routing",
    "SigmoidRouter",
    "SoftRouter",
    "TernaryRouter",
    "TopKRouter",
    "UngatedRouter",
]
