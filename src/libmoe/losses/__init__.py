"""Auxiliary losses: pure functions of a routing, attached to the graph by the MoE layer."""

from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Loss, Scope
from libmoe.losses.z_loss import ZLoss

__all__ = ["BalanceLoss", "Loss", "Scope", "ZLoss"]
