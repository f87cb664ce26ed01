"""Rows of tokens between ranks, differentiably: flat, in two hops and group-wise.

On any backend of ``torch.distributed``.  A function sends rows at once; the exchange that it returns, or that is agreed
on beforehand, carries further rows of the same numbers, and brings rows back::

    y_SD, way = exchange(x_RD, count_W)
    x_RD = way.back(y_SD)
"""

from libmoe.distributed.blocks import block_order
from libmoe.distributed.cost import Cluster, Link, exchange_seconds
from libmoe.distributed.flat import exchange, flat_exchange
from libmoe.distributed.group_wise import group_exchange, group_wise_exchange
from libmoe.distributed.hierarchical import Order, hierarchical_exchange, two_hop_exchange
from libmoe.distributed.moving import Exchange
from libmoe.distributed.topology import Topology
from libmoe.distributed.traffic import Tally, Traffic

__all__ = [
    "Cluster",
    "Exchange",
    "Link",
    "Order",
    "Tally",
    "Topology",
    "Traffic",
    "block_order",
    "exchange",
    "exchange_seconds",
    "flat_exchange",
    "group_exchange",
    "group_wise_exchange",
    "hierarchical_exchange",
    "two_hop_exchange",
]
