"""``ewa``: experts on random parts of the batch, drawn together until they are one dense FFN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers.base import Controller
from libmoe.controllers.weight_averaging import Ramp, WeightAveraging, check_share
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss
from libmoe.methods.base import Method, register_method
from libmoe.routers.partition import UniformPartitionRouter


@register_method(
    "ewa",
    summary="random equal parts of the tokens for experts that are averaged into one dense FFN",
    paper=127,
    aliases=("random-uniform-partition",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class EWA(Method):
    """Experts weights averaging (Huang et al., arXiv 2308.06093): a way to train a dense network.

    :class:`~libmoe.routers.partition.UniformPartitionRouter` deals tokens out, and
    :class:`~libmoe.controllers.weight_averaging.WeightAveraging` draws experts towards each other after every step of
    LibMoE's own loop; in another one call :func:`~libmoe.controllers.weight_averaging.draw_together`.  Outside training
    the layer computes what the dense FFN does whose weights are the experts' mean, and
    :func:`libmoe.models.averaging.average_experts` makes that model.  Costs are those of one expert.

    From scratch experts begin apart; ``init: copy`` begins a fine-tuning with copies.  Where in a network (every second
    block, say), how many experts, and how beta rises are not certain in the sources at hand.

    Attributes:
        num_experts: N; 4 by default.
        top_k: 1: a token has one expert.
        share: beta at the end of training, at most (N - 1) / N; to be swept, the order of 0.01 to 0.1.
        ramp: ``linear`` from 0, or ``constant``.
        include_self: the variant in which an expert is part of what it is drawn to.
        balance, z_loss: must stay 0: parts are equal by construction, and there is no router to train.
    """

    num_experts: int = 4
    top_k: int = 1
    balance: float = 0.0
    share: float = 0.1
    ramp: Ramp = "linear"
    include_self: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != 1:
            raise ConfigError(f"top_k={self.top_k}: a token is dealt to one expert; use 1, or the method 'random'")
        if self.balance or self.z_loss:
            raise ConfigError("balance and z_loss have no meaning for 'ewa', which has no scores; use 0")
        self.build_controllers()  # checks share and ramp
        check_share(self.share, self.num_experts, self.include_self)

    def build_router(self, site: Site) -> Router:
        return UniformPartitionRouter(self.num_experts)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return []

    def build_controllers(self) -> Sequence[Controller]:
        return [WeightAveraging(self.share, ramp=self.ramp, include_self=self.include_self)]
