"""The MoE layer and wrappers around it."""

from libmoe.layers.moe import MoELayer, moe_layers

__all__ = ["MoELayer", "moe_layers"]
