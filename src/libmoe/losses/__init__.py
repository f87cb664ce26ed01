"""Auxiliary losses: pure functions of a routing, attached to the graph by the MoE layer."""

from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Loss, Scope
from libmoe.losses.device_balance import DeviceBalanceLoss
from libmoe.losses.l1 import L1Loss
from libmoe.losses.null_reward import NullReward
from libmoe.losses.z_loss import ZLoss

__all__ = ["BalanceLoss", "DeviceBalanceLoss", "L1Loss", "Loss", "NullReward", "Scope", "ZLoss"]
