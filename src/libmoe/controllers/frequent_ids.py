"""Telling routers which token ids are common in what they are trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError
from libmoe.routers.visible import VisibleRouter, frequent_ids


class FrequentIds(Controller):
    """Before training, mark the commonest ids that make up ``mass`` of the training text (MaskMoE, arXiv 2407.09816).

    The masks do not change afterwards.  A loop that cannot count its data leaves all ids frequent; call
    :func:`set_frequent` then.

    Metrics: ``frequent_ids/share``, the share of ids that are frequent.

    Args:
        mass: share of all tokens.
    """

    def __init__(self, mass: float = 0.5) -> None:
        if not 0 <= mass <= 1:
            raise ConfigError(f"frequent_mass={mass} is a share of all tokens, 0 to 1")
        self.mass = mass

    def start(self, info: StepInfo) -> None:
        if info.token_shares is not None and _routers(info.model):
            set_frequent(info.model, info.token_shares(), self.mass)

    def after_step(self, info: StepInfo) -> None:
        routers = _routers(info.model)
        if routers:
            info.metrics["frequent_ids/share"] = float(routers[0].frequent_V.float().mean())


def set_frequent(model: nn.Module, count_V: Tensor, mass: float = 0.5) -> int:
    """Tell all routers of ``model`` which ids are frequent, by how often each occurs; returns how many routers.

    Args:
        count_V: for each id, in any unit; ids beyond its end do not occur.
        mass: as in :class:`FrequentIds`.

    Raises:
        ConfigError: there is no such router, or counts of more ids than the model has.
    """
    routers = _routers(model)
    if not routers:
        raise ConfigError(f"{type(model).__name__} has no router with a mask; put the method 'maskmoe' in first")
    frequent_V = frequent_ids(count_V.cpu(), mass)
    for router in routers:
        size = len(router.frequent_V)
        if bool(frequent_V[size:].any()):
            raise ConfigError(f"counts of {len(frequent_V)} ids do not fit a router for {size} ids: another tokenizer?")
        padded_V = torch.zeros(size, dtype=torch.bool)
        padded_V[: len(frequent_V)] = frequent_V[:size]
        router.frequent_V.copy_(padded_V)
    return len(routers)


def _routers(model: nn.Module) -> list[VisibleRouter]:
    return [module for module in model.modules() if isinstance(module, VisibleRouter)]
