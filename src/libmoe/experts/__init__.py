"""Experts: what computes.  Every kind runs rows sorted by expert; kinds compose with ``UnionExperts``."""

from libmoe.experts.backend import set_backend
from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFN, FFNExperts, SharedExpert
from libmoe.experts.grove import GroveExperts
from libmoe.experts.heads import HeadExperts
from libmoe.experts.modulated import ModulatedFFN, ModulationExperts
from libmoe.experts.modules import ModuleExperts
from libmoe.experts.null import ConstantExperts, CopyExperts, ZeroExperts
from libmoe.experts.scaled import ScaledExperts
from libmoe.experts.shift import ShiftExperts
from libmoe.experts.sliced import SlicedExperts
from libmoe.experts.sublayers import SublayerExperts
from libmoe.experts.topk_ffn import TopKFFN
from libmoe.experts.union import UnionExperts
from libmoe.experts.values import ValueExperts

__all__ = [
    "FFN",
    "ConstantExperts",
    "CopyExperts",
    "Experts",
    "FFNExperts",
    "GroveExperts",
    "HeadExperts",
    "ModulatedFFN",
    "ModulationExperts",
    "ModuleExperts",
    "ScaledExperts",
    "SharedExpert",
    "ShiftExperts",
    "SlicedExperts",
    "SublayerExperts",
    "TopKFFN",
    "UnionExperts",
    "ValueExperts",
    "ZeroExperts",
    "set_backend",
]
