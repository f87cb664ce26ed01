"""Small Mixers that read real digits, dense and with experts, untrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import libmoe
from digit_images import digits
from libmoe.core.routing import Routing
from libmoe.layers import moe_layers
from libmoe.models import BackboneConfig, build_backbone

S, C, N = 16, 12, 4
ROUTED = {"num_experts": N, "capacity_factor": None, "eval_capacity_factor": None}


def mixer(layers: int = 2, **extra: Any) -> Any:
    """For 8 x 8 pixels in 16 patches, untrained, with matrices so large that what it sees matters."""
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, **extra}
    model = build_backbone(BackboneConfig("mlp_mixer", C, layers, intermediate_size=20, extra=shape), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and ".before." not in name and ".after." not in name:
                parameter.mul_(15)
    return model.double().eval()


def sparse(
    layers: int = 2, where: str = "last:2", init: str = "copy", extra: Any = None, **given: Any
) -> Any:
    options = ROUTED | given
    model = libmoe.moeify(
        mixer(layers, **(extra or {})),
        "importance-score-routing",
        options=options,
        where=where,
        init=init,
        seed=0,
    )
    with torch.no_grad():
        for _, layer in moe_layers(model):
            layer.router.gate.weight.mul_(100)
            for expert, weight in ((e, w) for w in layer.experts.parameters() for e in range(len(w))):
                weight[expert] *= 1 + expert
    return model.eval()


def pixels(count: int = 5) -> Tensor:
    return digits("test")[0][:count].double()


def routed(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Routing]]:
    seen: list[Routing] = []
    with torch.no_grad(), libmoe.options(recorders=[lambda ctx, routing: seen.append(routing)]):
        return module(x), seen
