"""Routers: what decides.  Start a new one from ``TopKRouter`` (override one step) or ``Router``."""

from libmoe.core.routing import Router, Routing
from libmoe.routers.biased import BiasedRouter
from libmoe.routers.broadcast import BroadcastRouter
from libmoe.routers.conditional import ConditionalRouter
from libmoe.routers.cosine import CosineGate, CosineRouter, PerturbedCosineGate, TemperedCosineGate
from libmoe.routers.decoupled import DecoupledRouter
from libmoe.routers.deepspeed_top2 import DeepSpeedTop2Router
from libmoe.routers.dense_to_sparse import DenseToSparseRouter
from libmoe.routers.dense_training import DenseTrainingRouter
from libmoe.routers.distilled import DistilledRouter
from libmoe.routers.dselect import DSelectRouter
from libmoe.routers.expert_choice import ExpertChoiceRouter
from libmoe.routers.expert_dropout import DroppingGate
from libmoe.routers.frozen_gate import FrozenGate
from libmoe.routers.gap import GapRouter
from libmoe.routers.gates import LinearGate
from libmoe.routers.group_limited import GroupLimitedRouter
from libmoe.routers.grouped_decision import IdGate, PooledGate
from libmoe.routers.hash import HashRouter
from libmoe.routers.hierarchical import BiLevelGate, HierarchicalRouter
from libmoe.routers.hyper import HyperGate
from libmoe.routers.local_experts import LocalGate
from libmoe.routers.mixture import MixtureGate, VotingRouter
from libmoe.routers.null import NullExpertRouter
from libmoe.routers.output_masking import OutputMaskingRouter
from libmoe.routers.partition import UniformPartitionRouter
from libmoe.routers.pathway import PathwayRouter
from libmoe.routers.pooled import PooledRouter, PoolingGate
from libmoe.routers.pre_gated import PreGatedRouter
from libmoe.routers.product_key import ProductKeyRouter
from libmoe.routers.prototypes import PrototypeRouter
from libmoe.routers.random import RandomRouter
from libmoe.routers.relu import ReLURouter
from libmoe.routers.shared_embedding import EmbeddingNetwork, SharedEmbeddingRouter, share_embedding
from libmoe.routers.sigmoid import SigmoidRouter
from libmoe.routers.sinkhorn import SinkhornRouter
from libmoe.routers.soft import SoftRouter
from libmoe.routers.swipe import SwipeRouter
from libmoe.routers.ternary import TernaryRouter
from libmoe.routers.top_any import TopAnyRouter
from libmoe.routers.top_p import TopPRouter
from libmoe.routers.topk import TopKRouter
from libmoe.routers.transport_choice import TransportChoiceRouter
from libmoe.routers.uncertain import UncertaintyRouter
from libmoe.routers.ungated import UngatedRouter
from libmoe.routers.variable import VariableKRouter
from libmoe.routers.visible import VisibleRouter

__all__ = [
    "BiLevelGate",
    "BiasedRouter",
    "BroadcastRouter",
    "ConditionalRouter",
    "CosineGate",
    "CosineRouter",
    "DSelectRouter",
    "DecoupledRouter",
    "DeepSpeedTop2Router",
    "DenseToSparseRouter",
    "DenseTrainingRouter",
    "DistilledRouter",
    "DroppingGate",
    "EmbeddingNetwork",
    "ExpertChoiceRouter",
    "FrozenGate",
    "GapRouter",
    "GroupLimitedRouter",
    "HashRouter",
    "HierarchicalRouter",
    "HyperGate",
    "IdGate",
    "LinearGate",
    "LocalGate",
    "MixtureGate",
    "NullExpertRouter",
    "OutputMaskingRouter",
    "PathwayRouter",
    "PerturbedCosineGate",
    "PooledGate",
    "PooledRouter",
    "PoolingGate",
    "PreGatedRouter",
    "ProductKeyRouter",
    "PrototypeRouter",
    "RandomRouter",
    "ReLURouter",
    "Router",
    "Routing",
    "SharedEmbeddingRouter",
    "SigmoidRouter",
    "SinkhornRouter",
    "SoftRouter",
    "SwipeRouter",
    "TemperedCosineGate",
    "TernaryRouter",
    "TopAnyRouter",
    "TopKRouter",
    "TopPRouter",
    "TransportChoiceRouter",
    "UncertaintyRouter",
    "UngatedRouter",
    "UniformPartitionRouter",
    "VariableKRouter",
    "VisibleRouter",
    "VotingRouter",
    "share_embedding",
]
