"""How a layer of slots mixes tokens."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from libmoe.core.context import ForwardContext
from libmoe.core.plan import SoftPlan
from libmoe.layers.moe import MoELayer


def plan_of(layer: MoELayer, x_BLD: Tensor, mask_BL: Tensor | None = None) -> SoftPlan:
    """The plan for a batch of sequences."""
    inputs = {} if mask_BL is None else {"attention_mask": mask_BL}
    ctx = ForwardContext(inputs).layer(0, tuple(x_BLD.shape[:2]), layer.training)
    return cast("SoftPlan", layer.route(x_BLD.flatten(0, 1), ctx).plan)
