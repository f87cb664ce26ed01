"""``gating-dropout``: in some training steps tokens stay with the experts of their own device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.controllers.base import Controller
from libmoe.controllers.gating_dropout import GatingDropout
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.fairseq_moe_lm import FairseqMoELM
from libmoe.routers.deepspeed_top2 import Normalise
from libmoe.routers.local_experts import LocalGate


@register_method(
    "gating-dropout",
    summary="top-2; some training steps use the experts of the token's own device alone",
    paper=44,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class GatingDropoutMoE(FairseqMoELM):
    """Gating dropout (Liu et al., arXiv 2205.14336), the baseline of arXiv 2212.07571: the gate of ``moe-eom``.

    Devices need not be there: a batch and the experts are cut into as many parts
    (:class:`~libmoe.routers.local_experts.LocalGate`), and the controller, which belongs to LibMoE's own training loop,
    makes a step local with probability ``drop_rate``.  The router then chooses among the experts at hand; evaluation
    is that of the router without it.

    Attributes:
        drop_rate: p; the default is of the order the paper uses.
        devices: in how many parts experts and batch are cut; each has two experts at least.
        drop_seed: of the draws.
    """

    normalise: Normalise = "chosen"
    drop_rate: float = 0.3
    devices: int = 2
    drop_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks the rate
        if self.devices < 1 or self.num_experts % self.devices or self.num_experts // self.devices < self.top_k:
            raise ConfigError(
                f"devices={self.devices} must divide num_experts={self.num_experts} and leave each top_k={self.top_k} "
                "experts at least"
            )

    def build_gate(self, site: Site) -> nn.Module:
        return LocalGate(super().build_gate(site), self.num_experts, self.devices)

    def build_controllers(self) -> Sequence[Controller]:
        return [*super().build_controllers(), GatingDropout(self.drop_rate, self.drop_seed)]
