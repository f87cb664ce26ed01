"""Finding what a method put into a model, to set it from outside."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.layers.moe import moe_layers

M = TypeVar("M", bound=nn.Module)


def in_routers(model: nn.Module, kind: type[M], method: str) -> list[M]:
    """Modules of a kind in the routers of all MoE layers of ``model``, at least one.

    Args:
        method: name of one that brings them, for the message.

    Raises:
        ConfigError: there is none.
    """
    modules = (module for _, layer in moe_layers(model) for module in layer.router.modules())
    found = [module for module in modules if isinstance(module, kind)]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no {kind.__name__}; put the method {method!r} in first")
    return found
