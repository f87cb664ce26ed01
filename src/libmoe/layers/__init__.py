"""The MoE layer and wrappers around it."""

from libmoe.layers.mixing import ConditionalMix, LearnedMix
from libmoe.layers.moa import MoALayer
from libmoe.layers.moe import MoELayer, moe_layers
from libmoe.layers.multi_head import MultiHead
from libmoe.layers.replaced import put, replaced_forward

__all__ = [
    "ConditionalMix",
    "LearnedMix",
    "MoALayer",
    "MoELayer",
    "MultiHead",
    "moe_layers",
    "put",
    "replaced_forward",
]
