"""The MoE layer and wrappers around it."""

from libmoe.layers.moe import MoELayer, moe_layers
from libmoe.layers.replaced import replaced_forward

__all__ = ["MoELayer", "moe_layers", "replaced_forward"]
