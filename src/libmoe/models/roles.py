"""What each parameter is for: optimisers, schedules and ledgers treat experts and routers apart."""

from __future__ import annotations

from typing import Literal

from torch import nn

from libmoe.layers import moe_layers

Role = Literal["router", "expert", "shared", "backbone"]


def param_roles(model: nn.Module) -> dict[str, Role]:
    """Role of every parameter by name: ``router``, ``expert``, ``shared`` (always on in an MoE layer) or ``backbone``.

    A parameter with several names (tied) is listed once, under the name ``named_parameters`` gives it.
    """
    parts: dict[str, Role] = {"router": "router", "experts": "expert"}
    of_parameter: dict[int, Role] = {}
    for _, layer in moe_layers(model):
        for name, parameter in layer.named_parameters():
            of_parameter[id(parameter)] = parts.get(name.partition(".")[0], "shared")
    return {name: of_parameter.get(id(parameter), "backbone") for name, parameter in model.named_parameters()}
