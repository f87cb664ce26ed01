"""The step from which routing no longer changes."""

from __future__ import annotations

from torch import nn

from libmoe.controllers.base import Controller, StepInfo, step_at
from libmoe.core.errors import ConfigError
from libmoe.routers.distilled import DistilledRouter


class SettleRouting(Controller):
    """Let the distilled gates of all layers take over after a part of training (StableMoE, arXiv 2204.08396).

    What has settled stays so: the routers remember it, and a further run goes on with them.

    Metrics: ``settle/settled``, 1 from that step on.

    Args:
        after: fraction of training; 1 never settles.
    """

    def __init__(self, after: float = 0.1) -> None:
        if not 0 <= after <= 1:
            raise ConfigError(f"settle_after={after} is a fraction of training, 0 to 1")
        self.after = after

    def start(self, info: StepInfo) -> None:
        self._settle(info)

    def before_step(self, info: StepInfo) -> None:
        self._settle(info)

    def after_step(self, info: StepInfo) -> None:
        routers = distilled_routers(info.model)
        info.metrics["settle/settled"] = float(bool(routers) and all(bool(r.settled) for r in routers))

    def _settle(self, info: StepInfo) -> None:
        if self.after < 1 and info.total_steps and info.step >= step_at(self.after, info.total_steps):
            for router in distilled_routers(info.model):
                router.settled.fill_(True)


def distilled_routers(model: nn.Module) -> list[DistilledRouter]:
    return [module for module in model.modules() if isinstance(module, DistilledRouter)]
