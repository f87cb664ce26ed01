"""Standard MoE architectures of transformers: in with ``import_``, out with ``export``."""

from __future__ import annotations

from torch import nn

from libmoe.core.errors import unknown
from libmoe.models.standard.deepseek import DeepseekV3
from libmoe.models.standard.family import Block, Family, NotExpressibleError
from libmoe.models.standard.phimoe import Phimoe
from libmoe.models.standard.softmax import Mixtral, Olmoe, Qwen2Moe, Qwen3Moe
from libmoe.models.standard.switch import SwitchTransformers

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (Mixtral(), Olmoe(), Qwen2Moe(), Qwen3Moe(), DeepseekV3(), SwitchTransformers(), Phimoe())
}


def family(model_type: str) -> Family:
    """The family called ``model_type``.  Raises ConfigError naming the nearest when there is none."""
    if model_type not in FAMILIES:
        raise unknown("standard MoE architecture", model_type, FAMILIES)
    return FAMILIES[model_type]


def blocks_of(model: nn.Module, model_type: str) -> dict[str, Block]:
    """MoE blocks of a standard model, by path."""
    return family(model_type).blocks(model)


__all__ = ["FAMILIES", "Block", "Family", "NotExpressibleError", "blocks_of", "family"]
