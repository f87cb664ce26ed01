"""Auxiliary losses: pure functions of a routing, attached to the graph by the MoE layer."""

from libmoe.losses.alignment import GroupAlignmentLoss
from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Loss, Scope
from libmoe.losses.chosen import ChosenBalanceLoss
from libmoe.losses.clusters import ClusterLoss
from libmoe.losses.conflict import ConflictEliminationLoss
from libmoe.losses.device_balance import DeviceBalanceLoss
from libmoe.losses.distillation import RouterDistillationLoss
from libmoe.losses.diversity import DiversityLoss
from libmoe.losses.entropy import RoutingEntropyLoss, UsageEntropyLoss
from libmoe.losses.firing import FiringBalanceLoss, FiringShareLoss
from libmoe.losses.first_choice import FirstChoiceBalanceLoss, LoneChoiceBalanceLoss
from libmoe.losses.gradient import GradientLoss
from libmoe.losses.l1 import L1Loss
from libmoe.losses.locality import LocalityLoss
from libmoe.losses.null_balance import NullBalanceLoss
from libmoe.losses.null_reward import NullReward
from libmoe.losses.overload import OverloadLoss
from libmoe.losses.parameter_penalty import ParameterPenalty
from libmoe.losses.selection import SelectionLoss
from libmoe.losses.selectors import ReachableMassLoss, SelectorEntropyLoss
from libmoe.losses.sparsity import MeanImportanceLoss, SparsityLoss
from libmoe.losses.target import RouterTargetLoss
from libmoe.losses.variation import ImportanceLoss, LoadLoss
from libmoe.losses.z_loss import ZLoss

__all__ = [
    "BalanceLoss",
    "ChosenBalanceLoss",
    "ClusterLoss",
    "ConflictEliminationLoss",
    "DeviceBalanceLoss",
    "DiversityLoss",
    "FiringBalanceLoss",
    "FiringShareLoss",
    "FirstChoiceBalanceLoss",
    "GradientLoss",
    "GroupAlignmentLoss",
    "ImportanceLoss",
    "L1Loss",
    "LoadLoss",
    "LocalityLoss",
    "LoneChoiceBalanceLoss",
    "Loss",
    "MeanImportanceLoss",
    "NullBalanceLoss",
    "NullReward",
    "OverloadLoss",
    "ParameterPenalty",
    "ReachableMassLoss",
    "RouterDistillationLoss",
    "RouterTargetLoss",
    "RoutingEntropyLoss",
    "Scope",
    "SelectionLoss",
    "SelectorEntropyLoss",
    "SparsityLoss",
    "UsageEntropyLoss",
    "ZLoss",
]
